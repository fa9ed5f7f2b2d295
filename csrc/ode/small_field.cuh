// The exact empirical field of float32 data of few dimensions (pfgm_fast/operator.py states it), and a whole solve of it: a block works
// on a row from its start to its end, then takes the next.
#pragma once
#include "ode/kernels.cuh"
#include "ode/small_field.hpp"

namespace pfgm::ode {

namespace {

// N >= n: how many dimensions are unrolled.
template <int N>
__device__ double squared_distance(const double* x, const float* y, int n) {
  double sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < n) {
      const double difference = x[i] - y[i];
      sum += difference * difference;
    }
  }
  return sum;
}

// In every thread the largest value of the block.
__device__ double block_max(double value) {
  __shared__ double part[kFieldThreads];
  __syncthreads();
  part[threadIdx.x] = value;
  for (unsigned half = kFieldThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] = fmax(part[threadIdx.x], part[threadIdx.x + half]);
  }
  __syncthreads();
  return part[0];
}

// The posterior mean (n) at x, of the data [first, last). Log weights are relative to the nearest datum, so that the logarithm keeps
// its digits; differences, distances and sums are float64, the two functions of a weight float32.
template <int N>
__device__ void posterior_mean(const SmallField& field, const float* x, int n, double scale, int64_t first, int64_t last, float* mean) {
  __shared__ double part[N + 1][kFieldThreads];
  double query[N], sums[N + 1] = {};
#pragma unroll
  for (int i = 0; i < N; ++i) query[i] = i < n ? x[i] : 0;
  double nearest = INFINITY;
  for (int64_t j = first + threadIdx.x; j < last; j += kFieldThreads)
    nearest = fmin(nearest, squared_distance<N>(query, field.data + j * n, n));
  nearest = -block_max(-nearest);

  const bool gaussian = field.power == INFINITY;
  const double unit = 1 / (gaussian ? scale : scale + nearest);
  auto log_weight = [&](int64_t j) {
    const double u = (squared_distance<N>(query, field.data + j * n, n) - nearest) * unit;
    const double kernel = gaussian ? -u : -field.power * log1pf(float(u));
    return field.log_weights ? field.log_weights[j] + kernel : kernel;
  };
  double top = 0;
  if (field.log_weights) {
    top = -INFINITY;
    for (int64_t j = first + threadIdx.x; j < last; j += kFieldThreads) top = fmax(top, log_weight(j));
    top = block_max(top);
  }
  for (int64_t j = first + threadIdx.x; j < last; j += kFieldThreads) {
    const double weight = expf(float(log_weight(j) - top));
    sums[N] += weight;
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < n) sums[i] += weight * field.data[j * n + i];
  }

#pragma unroll
  for (int i = 0; i <= N; ++i) part[i][threadIdx.x] = sums[i];
  for (unsigned half = kFieldThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
#pragma unroll
      for (int i = 0; i <= N; ++i) part[i][threadIdx.x] += part[i][threadIdx.x + half];
  }
  __syncthreads();
  if (int(threadIdx.x) < n) mean[threadIdx.x] = float(part[threadIdx.x][0] / part[N][0]);
}

// Two blocks share a multiprocessor where a thread's sums leave the registers for it.
template <int N>
__global__ void __launch_bounds__(kFieldThreads, N > 8 ? 1 : 2) solve_field(Machine<float> m, SmallField field, float* answers) {
  const int64_t slot = blockIdx.x;
  while (m.slots[slot].at.stage != kIdle) {
    show(m);
    __syncthreads();
    const int64_t row = m.rows[slot];
    const double sigma = m.sigma[slot];
    const int64_t first = field.segments ? field.segments[2 * row] : 0, last = field.segments ? field.segments[2 * row + 1] : field.M;
    float* answer = answers + slot * m.n;
    posterior_mean<N>(field, m.shown + slot * m.n, int(m.n), field.spread * (sigma * sigma), first, last, answer);
    __syncthreads();
    advance(m, answer);
    __syncthreads();
  }
}

}  // namespace
}  // namespace pfgm::ode
