// The kernels of the slots for ctypes: what csrc/ode/loop.hpp offers, on the host.
#include "host_shim.hpp"
#include "ode/kernels.cuh"
#include "ode/small_field.cuh"

using namespace pfgm::ode;

namespace {

template <class T>
void run(const Machine<T>& m, int what, const T* answers) {
  const unsigned blocks = unsigned(m.width), size = block_size(m.n);
  if (what == 0) {
    shim::launch(1, 1, reset<T>, m);
    shim::launch(blocks, size, start<T>, m);
  } else if (what == 1) {
    shim::launch(blocks, block_size(m.n, kMostThreads), stage_in<T>, m);
  } else {
    shim::launch(blocks, size, stage_out<T, Unlooped>, m, answers, Unlooped{});
  }
}

template <int N>
__global__ void mean_of(SmallField field, const float* x, const double* sigma, int n, float* mean) {
  const int64_t b = blockIdx.x, *segment = field.segments + 2 * b;
  const int64_t first = field.segments ? segment[0] : 0, last = field.segments ? segment[1] : field.M;
  posterior_mean<N>(field, x + b * n, n, field.spread * (sigma[b] * sigma[b]), first, last, mean + b * n);
}

}  // namespace

extern "C" {

int64_t slot_bytes() { return sizeof(Slot); }
int64_t counter_bytes() { return sizeof(Counters); }

// Blocks and threads take their turns in an order of their own from here on; seed 0: one after another.
void shuffle(unsigned seed) {
  shim::shuffled = seed != 0;
  shim::order.seed(seed);
}

// what: 0 start, 1 stage_in, 2 stage_out.
void launch(int wide, const uintptr_t* addresses, const int64_t* sizes, const double* numbers, int what, const void* answers) {
  if (wide) {
    run(machine_of<double>({addresses, sizes, numbers}), what, static_cast<const double*>(answers));
  } else {
    run(machine_of<float>({addresses, sizes, numbers}), what, static_cast<const float*>(answers));
  }
}

// The rest of a solve that was started.
void launch_field(const uintptr_t* addresses, const int64_t* sizes, const double* numbers, int64_t M, const float* data,
                  const double* log_weights, const int64_t* segments, double power, double spread, float* answers) {
  const Machine<float> m = machine_of<float>({addresses, sizes, numbers});
  const SmallField field{M, data, log_weights, segments, power, spread};
  auto* kernel = m.n <= 2 ? solve_field<2> : m.n <= 4 ? solve_field<4> : solve_field<16>;
  shim::launch(unsigned(m.width), kFieldThreads, kernel, m, field, answers);
}

// The posterior mean alone, at x (B, n) and sigma (B).
void launch_mean(int64_t B, int64_t n, int64_t M, const float* data, const double* log_weights, const int64_t* segments, double power,
                 double spread, const float* x, const double* sigma, float* mean) {
  const SmallField field{M, data, log_weights, segments, power, spread};
  auto* kernel = n <= 2 ? mean_of<2> : n <= 4 ? mean_of<4> : mean_of<16>;
  shim::launch(unsigned(B), kFieldThreads, kernel, field, x, sigma, int(n), mean);
}

}
