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

// Squared distance of row j of the data to a query in the units of `raw`.
template <class T> double exact_distance(const pfgm::Sweep<T>& sweep, const double* query, int64_t j) {
  const int64_t at = j * sweep.N;
  switch (sweep.element) {
    case pfgm::Element::f32: return squared_distance(query, static_cast<const float*>(sweep.data) + at, sweep.N);
    case pfgm::Element::f64: return squared_distance(query, static_cast<const double*>(sweep.data) + at, sweep.N);
    default: return squared_distance(query, static_cast<const uint8_t*>(sweep.data) + at, sweep.N);
  }
}

template <class T> double exact_value(const pfgm::Sweep<T>& sweep, int64_t at) {
  switch (sweep.element) {
    case pfgm::Element::f32: return raw(static_cast<const float*>(sweep.data)[at]);
    case pfgm::Element::f64: return raw(static_cast<const double*>(sweep.data)[at]);
    default: return raw(static_cast<const uint8_t*>(sweep.data)[at]);
  }
}

// Adds rows [first, first + n) of the data to the sums of lane q, all in double: for numbers out of the range of T.
template <class T>
void add_exactly(const pfgm::Sweep<T>& sweep, const pfgm::Tile<T>& tile, int q, int64_t first, int64_t n, double* query) {
  pfgm::Accumulator& acc = tile.accumulator[q];
  const int64_t N = sweep.N;
  for (int64_t k = 0; k < N; ++k) query[k] = tile.x[q][k] * sweep.unit;
  for (int64_t j = first; j < first + n; ++j) {
    const double ratio = exact_distance(sweep, query, j) / tile.scale[q];
    const double log = (sweep.log_weights ? sweep.log_weights[j] : 0) - (std::isinf(sweep.power) ? ratio : sweep.power * std::log1p(ratio));
    if (!(log >= acc.reference - sweep.negligible) || std::isinf(log)) continue;
    const double top = log > acc.reference ? log : acc.reference;
    const double keep = std::exp(acc.reference - top), share = std::exp(log - top);
    acc.reference = top;
    acc.total = acc.total * keep + share;
    for (int64_t k = 0; k < N; ++k) acc.sum[k] = acc.sum[k] * keep + share * (exact_value(sweep, j * N + k) - sweep.center[k]);
  }
}

}  // namespace
