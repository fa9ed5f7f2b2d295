// Delicate pairs: distances by differences in double, summed at once into the row's accumulator.
#pragma once
#include <cmath>

#include "field/lanes.hpp"
#include "field/sweep.hpp"

namespace {

PFGM_INLINE double raw(float y) { return y; }
PFGM_INLINE double raw(double y) { return y; }
PFGM_INLINE double raw(uint8_t u) { return 2 * int(u) - 255; }

template <class E> double squared_distance(const double* __restrict x, const E* __restrict y, int64_t N) {
  constexpr int S = 32;  // independent partial sums
  double part[S] = {};
  int64_t n = 0;
  for (; n + S <= N; n += S)
    for (int i = 0; i < S; ++i) {
      const double d = raw(y[n + i]) - x[n + i];
      part[i] += d * d;
    }
  for (int i = 0; n + i < N; ++i) {
    const double d = raw(y[n + i]) - x[n + i];
    part[i] += d * d;
  }
  for (int s = S / 2; s; s /= 2)
    for (int i = 0; i < s; ++i) part[i] += part[i + s];
  return part[0];
}

// Adds rows `first + pick[i]` of the data to the sums of lane q; `logs` and `query` are room for `count` and N numbers.
template <class T, class E>
void add_exactly(const pfgm::Sweep<T>& sweep, const pfgm::Tile<T>& tile, int q, int64_t first, const int32_t* pick, int count, double* logs,
                 double* query) {
  pfgm::Accumulator& acc = tile.accumulator[q];
  const int64_t N = sweep.N;
  const E* data = static_cast<const E*>(sweep.data);
  double best = acc.reference;
  for (int64_t n = 0; n < N; ++n) query[n] = tile.x[q][n] * sweep.unit;
  for (int i = 0; i < count; ++i) {
    const int64_t j = first + pick[i];
    const double ratio = squared_distance(query, data + j * N, N) / tile.scale[q];
    logs[i] = (sweep.log_weights ? sweep.log_weights[j] : 0) - (std::isinf(sweep.power) ? ratio : sweep.power * std::log1p(ratio));
    best = logs[i] > best ? logs[i] : best;
  }
  if (!(best > -INFINITY)) return;
  if (best > acc.reference) {
    const double keep = std::exp(acc.reference - best);
    acc.reference = best;
    acc.total *= keep;
    for (int64_t n = 0; n < N; ++n) acc.sum[n] *= keep;
  }
  for (int i = 0; i < count; ++i) {
    if (logs[i] < best - sweep.negligible) continue;
    const double w = std::exp(logs[i] - best);
    const E* y = data + (first + pick[i]) * N;
    acc.total += w;
    for (int64_t n = 0; n < N; ++n) acc.sum[n] += w * (raw(y[n]) - sweep.center[n]);
  }
}

}  // namespace
