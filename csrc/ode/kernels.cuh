// The kernels of the slots, a block for each: one shows the states where slopes are wanted, one takes the slopes. All decisions fall
// here; the host only learns, late, how many rows are left. nvcc compiles this file, and the tests' C++ compiler (tests/shim).
#pragma once
#include "ode/machine.hpp"

namespace pfgm::ode {
namespace {

// In every thread the sum of the threads' values, for n elements dealt to them in turn: the tree of step.hpp.
__device__ double lane_sum(double value, int64_t n) {
  __shared__ double part[kMostLanes];
  const unsigned lanes = lanes_of(n);
  __syncthreads();  // the sum before this one has been read
  if (threadIdx.x < lanes) part[threadIdx.x] = value;
  for (unsigned half = lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  __syncthreads();
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
  m.slots[slot].at = at;
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

template <class T>
__device__ T state_of_stage(int stage, T y, T h, const T* k, int64_t stride) {
  switch (stage) {
    case kProbe: return y + h * k[0];
    case 1: return state<1>(y, h, k, stride);
    case 2: return state<2>(y, h, k, stride);
    case 3: return state<3>(y, h, k, stride);
    case 4: return state<4>(y, h, k, stride);
    case 5: return state<5>(y, h, k, stride);
    case 6: return state<6>(y, h, k, stride);
    default: return y;
  }
}

template <class T>
__device__ void show(const Machine<T>& m) {
  const int64_t slot = blockIdx.x, n = m.n;
  const Row at = m.slots[slot].at;
  if (at.stage == kIdle || m.counters->over) return;
  const int64_t row = m.rows[slot];
  const T *y = m.x + row * n, *k = m.k + slot * kSlopes * n;
  T* shown = m.shown + slot * n;
  const T h = T(step_of_stage(at));
  bool finite = true;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    shown[i] = state_of_stage(at.stage, y[i], h, k + i, n);
    finite = finite && std::isfinite(shown[i]);
  }
  finite = __syncthreads_and(finite);
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

// Takes the slot's answer (n): its slope, or the denoised state.
template <class T>
__device__ void advance(const Machine<T>& m, const T* answer) {
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

  T *y = m.x + row * n, *k = m.k + slot * kSlopes * n;
  const T* shown = m.shown + slot * n;
  const T h = T(step_of_stage(at)), rtol = T(m.tolerance.rtol), atol = T(m.tolerance.atol);
  auto slope = [&](int64_t i) { return blank ? T(NAN) : m.sigma ? shown[i] - answer[i] : answer[i]; };
  if (at.stage >= kFirst && at.stage < kLast) {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) k[at.stage * n + i] = slope(i);
    if (threadIdx.x == 0) m.slots[slot].at.stage = at.stage + 1;
    return;
  }

  double squares = 0, slope_squares = 0;
  bool finite = !blank;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const T f = slope(i);
    T ratio;
    if (at.stage == kLast) {
      const T y_new = state<kLast>(y[i], h, k + i, n);  // again: whoever was shown it may have worked in place
      ratio = scaled_error(y[i], y_new, h, k + i, n, f, rtol, atol);
      finite = finite && std::isfinite(scaled_error(y[i], y_new, h, k + i, n, f, T(0), T(1)));
      k[n + i] = y_new;  // the second slope has no weight from here on
    } else {
      const T magnitude = fabs(y[i]);
      const T other = scaled(f, magnitude, rtol, atol);
      ratio = scaled(at.stage == kProbe ? f - k[i] : y[i], magnitude, rtol, atol);
      slope_squares += double(other) * double(other);
      if (at.stage == kStart) k[i] = f;
    }
    finite = finite && std::isfinite(f);
    squares += double(ratio) * double(ratio);
  }
  finite = __syncthreads_and(finite);
  const double norm = rms(lane_sum(squares, n), n), slope_norm = rms(lane_sum(slope_squares, n), n);
  if (threadIdx.x == 0) {
    accepted = judge(m, slot, row, finite, norm, slope_norm);
    if (m.slots[slot].at.stage == kFirst) m.starting[slot] = m.rows[slot];
  }
  __syncthreads();
  if (accepted)
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      k[i] = slope(i);
      y[i] = k[n + i];
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
__global__ void stage_in(Machine<T> m) {
  show(m);
}

template <class T, class Loop>
__global__ void stage_out(Machine<T> m, const T* answers, Loop loop) {
  advance(m, answers + blockIdx.x * m.n);
  finish(m, loop);
}

struct Unlooped {
  __device__ void operator()(bool) const {}
};

}  // namespace
}  // namespace pfgm::ode
