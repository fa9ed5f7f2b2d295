// The kernels of the slots, a block for each: one shows the states where slopes are wanted, one takes the slopes. All decisions fall
// here; the host only learns, late, how many rows are left. nvcc compiles this file, and the tests' C++ compiler (tests/shim).
#pragma once
#include "ode/machine.hpp"

namespace pfgm::ode {
namespace {

// In the first thread the sum of the threads' values, for n elements dealt to them in turn: the tree of step.hpp.
__device__ double lane_sum(double value, int64_t n) {
  __shared__ double part[kMostLanes];
  const unsigned lanes = lanes_of(n);
  __syncthreads();  // the sum before this one is done
  if (threadIdx.x < lanes) part[threadIdx.x] = value;
  for (unsigned half = lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  return part[0];
}

__device__ double level(const Levels& levels, double t) {
  if (t == levels.t_first) return levels.first;
  if (t == levels.t_last) return levels.last;
  const double low = fmin(levels.first, levels.last), high = fmax(levels.first, levels.last);
  return fmin(fmax(exp(t), low), high);
}

template <class T>
__device__ void tell_time(const Machine<T>& m, int64_t slot, double t) {
  if (m.sigma) {
    m.sigma[slot] = T(level(m.levels, t));
  } else {
    m.time[slot] = t;
  }
}

// Gives the slot this row, or the next of the queue that has a way to go. Without one the slot idles, and shows what it showed.
template <class T>
__device__ void take(const Machine<T>& m, int64_t slot, int64_t row) {
  while (row < m.B && m.t[row] == m.end[row]) {
    m.status[row] = int8_t(Status::success);
    atomicSub(&m.counters->running, 1);
    row = atomicAdd(&m.counters->next, 1u);
  }
  Row at{};
  at.stage = kIdle;
  if (row < m.B) {
    m.rows[slot] = row;
    at.t = at.t_new = at.frontier = m.t[row];
    at.end = m.end[row];
    at.stage = kStart;
  }
  m.slots[slot] = {at, false};
}

template <class T>
__device__ void begin(const Machine<T>& m) {
  const int64_t slot = blockIdx.x;
  for (int64_t i = threadIdx.x; i < m.n; i += blockDim.x) m.shown[slot * m.n + i] = 0;
  if (threadIdx.x == 0) {
    m.rows[slot] = slot;
    tell_time(m, slot, m.t[slot]);
    m.starting[slot] = m.attempted[slot] = -1;
    take(m, slot, slot);
  }
}

// Writes this thread's part of the stage's state; whether it is finite.
template <int STAGE, class T>
__device__ bool fill(const T* __restrict__ y, T h, const T* __restrict__ k, int64_t n, T* __restrict__ x) {
  bool finite = true;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    T value = y[i];
    if constexpr (STAGE == kProbe) value = value + h * k[i];
    if constexpr (STAGE >= kFirst) value = state<STAGE>(value, h, k + i, n);
    finite = finite && std::isfinite(value);
    x[i] = value;
  }
  return finite;
}

template <class T>
__device__ bool fill(int stage, const T* y, T h, const T* k, int64_t n, T* x) {
  switch (stage) {
    case kStart: return fill<kStart>(y, h, k, n, x);
    case kProbe: return fill<kProbe>(y, h, k, n, x);
    case 1: return fill<1>(y, h, k, n, x);
    case 2: return fill<2>(y, h, k, n, x);
    case 3: return fill<3>(y, h, k, n, x);
    case 4: return fill<4>(y, h, k, n, x);
    case 5: return fill<5>(y, h, k, n, x);
    default: return fill<kLast>(y, h, k, n, x);
  }
}

template <class T>
__device__ void show(const Machine<T>& m) {
  const int64_t slot = blockIdx.x, n = m.n;
  const Row at = m.slots[slot].at;
  if (at.stage == kIdle || m.counters->over) return;
  const int64_t row = m.rows[slot];
  T* shown = m.shown + slot * n;
  const bool finite = __syncthreads_and(fill(at.stage, m.x + row * n, T(step_of_stage(at)), m.k + slot * kSlopes * n, n, shown));
  if (!finite)
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) shown[i] = 0;
  if (threadIdx.x == 0) {
    m.slots[slot].blank = !finite;
    ++m.nfe[row];
    tell_time(m, slot, time_of_stage(at));
  }
}

// What the norms of its slope mean for a row at kStart, kProbe or kLast, and for its slot; whether a step was accepted.
template <class T>
__device__ bool judge(const Machine<T>& m, int64_t slot, int64_t row, bool finite, double norm, double slope_norm) {
  Row at = m.slots[slot].at;
  Outcome outcome{false, Status::stopped};
  if (at.stage == kLast) {
    outcome = end_attempt(at, norm, finite, m.tolerance);
    ++(outcome.accepted ? m.accepted : m.rejected)[row];
    m.t[row] = at.t;
  } else if (at.stage == kProbe) {
    end_probe(at, norm, finite);
  } else if (finite) {
    begin_probe(at, norm, slope_norm);
  } else {
    outcome.status = Status::nonfinite;
  }
  m.slots[slot].at = at;
  if (outcome.status != Status::stopped) {
    m.status[row] = int8_t(outcome.status);
    atomicSub(&m.counters->running, 1);
    take(m, slot, atomicAdd(&m.counters->next, 1u));
  }
  return outcome.accepted;
}

// This thread's part of what the norms at STAGE are made of, in units of the tolerance.
struct Part {
  double squares = 0;  // of the state, at kStart; of the slope's change, at kProbe; of the error, at kLast
  double slope = 0;    // squares of the slope
  bool finite = true;
};

// Keeps the slope, or the state that the step leads to, on the way.
template <int STAGE, class T, class Slope>
__device__ Part measure(const T* __restrict__ y, T h, T* __restrict__ k, int64_t n, const Tolerance& tolerance, const Slope& slope) {
  const T rtol = T(tolerance.rtol), atol = T(tolerance.atol);
  T* __restrict__ candidate = k + n;  // the second slope has no weight in what follows the last stage
  Part part;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const T f = slope(i);
    T ratio;
    if constexpr (STAGE == kLast) {
      const T y_new = state<kLast>(y[i], h, k + i, n);  // again: whoever was shown it may have worked in place
      ratio = scaled_error(y[i], y_new, h, k + i, n, f, rtol, atol);
      part.finite = part.finite && std::isfinite(scaled_error(y[i], y_new, h, k + i, n, f, T(0), T(1)));
      candidate[i] = y_new;
    } else if constexpr (STAGE == kProbe) {
      ratio = scaled(f - k[i], std::fabs(y[i]), rtol, atol);
    } else {
      ratio = scaled(y[i], std::fabs(y[i]), rtol, atol);
      const T steepness = scaled(f, std::fabs(y[i]), rtol, atol);
      part.slope += double(steepness) * double(steepness);
      k[i] = f;
    }
    part.finite = part.finite && std::isfinite(f);
    part.squares += double(ratio) * double(ratio);
  }
  return part;
}

// Takes the slot's answer (n): its slope, or the denoised state.
template <class T>
__device__ void advance(const Machine<T>& m, const T* __restrict__ answer) {
  __shared__ bool accepted;
  const int64_t slot = blockIdx.x, n = m.n, row = m.rows[slot];
  const Row at = m.slots[slot].at;
  const bool blank = m.slots[slot].blank, idle = at.stage == kIdle || m.counters->over;
  __syncthreads();  // all have read what one will change
  if (threadIdx.x == 0) {
    m.starting[slot] = -1;
    m.attempted[slot] = !idle && at.stage == kLast ? row : -1;
  }
  if (idle) return;

  T *__restrict__ y = m.x + row * n, *__restrict__ k = m.k + slot * kSlopes * n;
  const T* __restrict__ shown = m.shown + slot * n;
  auto slope = [&](int64_t i) { return blank ? T(NAN) : m.sigma ? shown[i] - answer[i] : answer[i]; };
  if (at.stage >= kFirst && at.stage < kLast) {
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) k[at.stage * n + i] = slope(i);
    if (threadIdx.x == 0) m.slots[slot].at.stage = at.stage + 1;
    return;
  }

  const T h = T(step_of_stage(at));
  const Part part = at.stage == kLast    ? measure<kLast>(y, h, k, n, m.tolerance, slope)
                    : at.stage == kProbe ? measure<kProbe>(y, h, k, n, m.tolerance, slope)
                                         : measure<kStart>(y, h, k, n, m.tolerance, slope);
  const bool finite = __syncthreads_and(part.finite && !blank);
  const double norm = rms(lane_sum(part.squares, n), n), slope_norm = rms(lane_sum(part.slope, n), n);
  if (threadIdx.x == 0) {
    accepted = judge(m, slot, row, finite, norm, slope_norm);
    if (m.slots[slot].at.stage == kFirst) m.starting[slot] = m.rows[slot];
  }
  __syncthreads();
  if (!accepted) return;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    y[i] = k[n + i];
    k[i] = slope(i);
  }
}

// The last block to be through counts the iteration and tells `loop` whether there is to be another.
template <class T, class Loop>
__device__ void finish(const Machine<T>& m, Loop loop) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  Counters& counters = *m.counters;
  __threadfence();
  if (atomicAdd(&counters.ticket, 1u) != gridDim.x - 1) return;
  __threadfence();
  counters.ticket = 0;
  if (++counters.iterations >= *const_cast<volatile int64_t*>(&counters.cap)) {
    counters.over = 1;
    counters.running = 0;
  }
  loop(atomicAdd(&counters.running, 0) > 0);
}

template <class T>
__global__ void reset(Machine<T> m) {
  *m.counters = {uint32_t(m.width), int32_t(m.B), 0, 0, 0, m.cap};
}

template <class T>
__global__ void start(Machine<T> m) {
  begin(m);
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, 1) stage_in(Machine<T> m) {
  show(m);
}

template <class T, class Loop>
__global__ void __launch_bounds__(kMostLanes, 1) stage_out(Machine<T> m, const T* answers, Loop loop) {
  advance(m, answers + blockIdx.x * m.n);
  finish(m, loop);
}

struct Unlooped {
  __device__ void operator()(bool) const {}
};

}  // namespace
}  // namespace pfgm::ode
