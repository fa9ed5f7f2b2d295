// CUDA kernels on the host, without their sources changed: the threads of a block are contexts that take turns between barriers, blocks
// run one after another. `order` shuffles both, so that a missing barrier or a race shows as another result.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__ static
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr unsigned kThreads = 512;
constexpr size_t kStack = 32 * 1024;

// Each has a stack of its own and serves block after block. Once there, it is left and entered by jumps: swapcontext asks the kernel.
struct Thread {
  jmp_buf place;
  bool made, running, arrived;
  int vote;
};

static jmp_buf scheduler;
static ucontext_t first_entry;
static Thread threads[kThreads];
static const std::unique_ptr<char[]> stacks(new char[kThreads * kStack]);
static std::function<void()> body;
static std::mt19937 order;
static bool shuffled = false;

inline void leave(Thread& self) {
  if (_setjmp(self.place) == 0) _longjmp(scheduler, 1);
}

inline int barrier(int vote) {
  Thread& self = threads[threadIdx.x];
  self.arrived = true;
  self.vote = vote;
  leave(self);
  return self.vote;  // by now that of the whole block
}

inline void serve() {
  for (;;) {
    body();
    Thread& self = threads[threadIdx.x];
    self.running = false;
    leave(self);
  }
}

// Runs a thread to its next barrier or its end.
inline void resume(Thread& thread, char* stack) {
  if (_setjmp(scheduler) != 0) return;
  if (thread.made) _longjmp(thread.place, 1);
  thread.made = true;
  getcontext(&first_entry);
  first_entry.uc_stack.ss_sp = stack;
  first_entry.uc_stack.ss_size = kStack;
  makecontext(&first_entry, serve, 0);
  setcontext(&first_entry);
}

inline std::vector<unsigned> turns(unsigned count) {
  std::vector<unsigned> turn(count);
  for (unsigned i = 0; i < count; ++i) turn[i] = i;
  if (shuffled) std::shuffle(turn.begin(), turn.end(), order);
  return turn;
}

inline void run_block(unsigned size) {
  for (unsigned i = 0; i < size; ++i) threads[i].running = true;
  for (bool more = true; more;) {
    unsigned waiting = 0, ended = 0;
    int vote = 1;
    for (const unsigned i : turns(size)) {
      Thread& thread = threads[i];
      thread.arrived = false;
      threadIdx.x = i;
      if (thread.running) resume(thread, stacks.get() + i * kStack);
      waiting += thread.arrived;
      ended += !thread.running;
      if (thread.arrived) vote = vote && thread.vote;
    }
    if (waiting != 0 && ended != 0) {
      std::fprintf(stderr, "%u threads wait at a barrier that %u will not reach\n", waiting, ended);
      std::abort();
    }
    for (unsigned i = 0; i < size; ++i) threads[i].vote = vote;
    more = waiting != 0;
  }
}

template <class Kernel, class... Arguments>
void launch(unsigned blocks, unsigned size, Kernel kernel, Arguments... arguments) {
  blockDim.x = size;
  gridDim.x = blocks;
  body = [&] { kernel(arguments...); };
  for (const unsigned block : turns(blocks)) {
    blockIdx.x = block;
    run_block(size);
  }
}

}  // namespace shim

inline void __syncthreads() { shim::barrier(1); }
inline int __syncthreads_and(int vote) { return shim::barrier(vote); }
inline void __threadfence() {}

template <class V>
V atomicAdd(V* place, V value) {
  const V before = *place;
  *place += value;
  return before;
}
template <class V>
V atomicSub(V* place, V value) {
  return atomicAdd(place, V(-value));
}
