// The slots as the CUDA kernels see them: addresses and numbers that stay the same through a solve, so that a graph may hold them.
#pragma once
#include <cstdint>
#include <type_traits>

#include "ode/step.hpp"

namespace pfgm::ode {

constexpr int kIdle = 0;  // the stage of a slot without a row

struct Slot {
  Row at;
  bool blank;  // the state of this stage is not finite: zeros are shown in its place, and the answer is taken for NaN
};

struct Counters {
  uint32_t next;       // the first row that no slot has taken
  int32_t running;     // rows that have not left
  uint32_t ticket;     // blocks that are through with this iteration
  int32_t over;        // whether the cap was reached: no slot moves any more
  int64_t iterations;
  int64_t cap;         // the host lowers it to end a solve that it does not steer
};

// A solve of a denoiser asks at noise levels exp(t): exact at both ends and never outside of them (pfgm_fast/schedule.py).
struct Levels {
  double t_first, t_last, first, last;
};

template <class T>
struct Machine {
  // The record, an entry a row.
  T* x;  // (B, n)
  double* t;
  const double* end;
  int8_t* status;
  int64_t *nfe, *accepted, *rejected;
  // An entry a slot.
  T* shown;         // (slots, n), where the slope is asked for
  double* time;     // when; not in a solve of a denoiser
  T* sigma;         // the noise level in a solve of a denoiser, whose answers are denoised states; else null
  int64_t* rows;
  T* k;             // (slots, kSlopes, n)
  Slot* slots;
  int64_t* starting;   // the row that is about to attempt a step, or -1
  int64_t* attempted;  // the row whose attempt has just ended, or -1
  Counters* counters;
  int64_t B, n, width;  // width: the number of slots
  int64_t cap;
  Tolerance tolerance;
  Levels levels;
};

// What Python hands over. The addresses come in the order of Machine's members.
struct Description {
  const uintptr_t* addresses;  // kAddresses
  const int64_t* sizes;        // B, slots, n, the cap on iterations, max_steps
  const double* numbers;       // rtol, atol, safety, min_factor, max_factor; t_first, t_last, first, last
};

constexpr int kAddresses = 16, kSizes = 5, kNumbers = 9;

template <class T>
Machine<T> machine_of(const Description& d) {
  Machine<T> m{};
  const uintptr_t* address = d.addresses;
  auto next = [&address](auto*& member) { member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(*address++); };
  next(m.x), next(m.t), next(m.end), next(m.status), next(m.nfe), next(m.accepted), next(m.rejected);
  next(m.shown), next(m.time), next(m.sigma), next(m.rows), next(m.k), next(m.slots), next(m.starting), next(m.attempted);
  next(m.counters);
  m.B = d.sizes[0], m.width = d.sizes[1], m.n = d.sizes[2], m.cap = d.sizes[3];
  const double* number = d.numbers;
  m.tolerance = {number[0], number[1], number[2], number[3], number[4], d.sizes[4]};
  m.levels = {number[5], number[6], number[7], number[8]};
  return m;
}

constexpr unsigned kMostThreads = 512;  // of a block that does not sum

// Threads of a block: if it sums over a row, one for each lane, and no less than a warp.
inline unsigned block_size(int64_t n, unsigned most = kMostLanes) {
  unsigned threads = 32;
  while (threads < most && threads < n) threads *= 2;
  return threads;
}

}  // namespace pfgm::ode
