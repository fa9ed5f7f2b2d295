// The running softmax of one tile: reference, thresholds and weights, one query in each lane.
//
// `score` s stands for the squared distance less the lane's constant `norm`. Three things can happen to a pair, by its score alone:
// beyond `band` its weight is an exact zero; if its score is too imprecise (below `low`, above `high`) and its weight may matter
// (within `care`), its distance is taken again by differences; else the score is good as it is.
#pragma once
#include <cmath>

#include "field/exact.hpp"

namespace {
using pfgm::Sweep;
using pfgm::Tile;

constexpr int GROUPS = 2;
template <class T> constexpr int QW = GROUPS * Types<T>::W;  // queries in a tile
constexpr double TOLERANCE = 2e-5;                           // error of a log weight above which a pair is delicate

enum class Kernel { gauss, near_one, general, cube_root, root };  // exp; power >> 1; any; power 3/2; 2 power a small integer

template <class T>
struct Softmax {
  alignas(64) T lowest[QW<T>];     // of all scores so far
  alignas(64) T reference[QW<T>];  // score that the sums are relative to
  alignas(64) T rate[QW<T>];       // 1 / (reference + norm + scale), or log2(e) / scale
  alignas(64) T level[QW<T>];      // with log masses: log2 of the weight that the sums are relative to
  alignas(64) T band[QW<T>], care[QW<T>], low[QW<T>], high[QW<T>];
  alignas(64) T constant[QW<T>];  // norm + scale
  alignas(64) T slack[QW<T>];     // twice the error of a product
  alignas(64) T reach[QW<T>];     // width of the band: absolute, or relative to reference + constant
  double error[QW<T>];            // of a product, relative to |y|^2 + 2 |x||y|
  alignas(64) double total[QW<T>];  // sum of weights
  double distance[QW<T>];         // squared distance that the sums are relative to: reference + norm, without its rounding
  double handed[QW<T>], log[QW<T>];  // that distance at the last handing over, and its log weight
  double largest;                 // squared norm of data so far
  bool lost[QW<T>];               // an error was seen to be larger than was thought possible
  double room[GROUPS];            // squared norm of data up to which all lanes of a group are plain: see start_plain
};

template <class T>
struct Shape {
  T power;
  int twice_power;
  double error;  // of a difference, relative to itself
  bool products;
};

// Weight, and its log2, of a score that is `beyond` the reference.
template <Kernel kernel, class T> PFGM_INLINE Vec<T> log2_weight(Vec<T> beyond, Vec<T> rate, T power) {
  const Vec<T> u = beyond * rate;
  if constexpr (kernel == Kernel::gauss) return -u;
  if constexpr (kernel == Kernel::near_one) return log2_1p_near(u) * -power;
  return log2_1p<T>(u) * -power;
}

template <Kernel kernel, class T> PFGM_INLINE Vec<T> weight(Vec<T> beyond, Vec<T> rate, const Shape<T>& shape) {
  if constexpr (kernel == Kernel::cube_root) return rsqrt_cubed(beyond * rate + T(1));
  if constexpr (kernel == Kernel::root) {
    Vec<T> r = rsqrt(beyond * rate + T(1)), product = broadcast(T(1));
    for (int bit = shape.twice_power; bit; bit >>= 1) {
      if (bit & 1) product = product * r;
      r = r * r;
    }
    return product;
  }
  return exp2_of<T>(log2_weight<kernel, T>(beyond, rate, shape.power));
}

// Up to which score an error of a lane's scores may matter: the error of the log weight times the weight of all data there, against
// TOLERANCE.
template <class T> T careful(const Softmax<T>& st, const Sweep<T>& sweep, const Tile<T>& tile, int q) {
  const double scale = tile.scale[q], error = st.slack[q] / 2, lowest = st.lowest[q];
  if (tile.exact[q] || error == 0) return INFINITY;
  const double nearest = std::fmax(lowest + tile.norm[q] - error, 0);
  const double worst = error * (std::isinf(sweep.power) ? 1 / scale : sweep.power / (scale + nearest)) / TOLERANCE;
  const double count = double(sweep.end - sweep.begin);  // the errors of equal data add up
  const double nats = std::log(std::fmax(worst * count, 1)) + sweep.log_weight_range;
  return T(lowest + 2 * error + (std::isinf(sweep.power) ? nats * scale : (nearest + 3 * error + scale) * std::expm1(nats / sweep.power)));
}

// Which scores a matrix product leaves too imprecise, once the largest datum so far is known.
template <class T> void set_precision(Softmax<T>& st, const Sweep<T>& sweep, const Tile<T>& tile, const Shape<T>& shape) {
  for (int q = 0; q < QW<T>; ++q) {
    const double norm = tile.norm[q], scale = tile.scale[q];
    st.slack[q] = 0, st.low[q] = -INFINITY, st.high[q] = INFINITY;
    if (shape.products) {
      const double error = st.error[q] * (st.largest + 2 * std::sqrt(norm * st.largest));
      const double critical = std::isinf(sweep.power) ? (error > TOLERANCE * scale ? INFINITY : -INFINITY)
                                                      : sweep.power * error / TOLERANCE - scale;
      if (critical > 0) st.low[q] = T(critical - norm + error);
      st.slack[q] = T(2 * error);
    } else {
      const double share = TOLERANCE / shape.error / (std::isinf(sweep.power) ? 1 : sweep.power);
      if (std::isinf(sweep.power)) st.high[q] = T(scale * share);
      else if (share < 1) st.high[q] = T(scale * share / (1 - share));
    }
    if (tile.exact[q]) st.low[q] = INFINITY;
    st.care[q] = careful(st, sweep, tile, q);
  }
}

template <class T> void start(Softmax<T>& st, const Sweep<T>& sweep, const Tile<T>& tile, const Shape<T>& shape) {
  st.largest = 0;
  for (int q = 0; q < QW<T>; ++q) {
    const bool idle = !tile.accumulator[q].sum;
    st.lowest[q] = st.reference[q] = Types<T>::huge;
    st.distance[q] = 0;
    st.lost[q] = false;
    st.handed[q] = NAN;
    st.level[q] = -Types<T>::huge;
    st.total[q] = 0;
    st.constant[q] = tile.exact[q] ? T(1) : T(tile.norm[q] + tile.scale[q]);
    const double nats = sweep.negligible + sweep.log_weight_range;
    const double reach = std::isinf(sweep.power) ? nats * tile.scale[q] : std::expm1(nats / sweep.power);
    st.reach[q] = idle ? -INFINITY : tile.exact[q] || reach > 1e30 ? INFINITY : T(reach);
    st.rate[q] = std::isinf(sweep.power) ? T(1.44269504088896341 / tile.scale[q]) : T(0);
  }
  set_precision(st, sweep, tile, shape);
}

// How the scores of one group of lanes are read: less `reference`, those up to `cut`.
template <class T>
struct Frame {
  Vec<T> reference, cut;
};

// Adds weights to the totals of a group of lanes.
template <class T> PFGM_INLINE void add_total(Softmax<T>& st, int at, Vec<T> w) {
  for (int q = 0; q < Types<T>::W; ++q) st.total[at + q] += w[q];
}

template <class T> constexpr unsigned ALL = (1u << Types<T>::W) - 1;

// Takes the lowest score of a block. Returns whether sums must be multiplied by `factor`, lane by lane.
template <Kernel kernel, bool masses, class T>
PFGM_INLINE bool settle(Softmax<T>& st, const Sweep<T>& sweep, const Tile<T>& tile, int at, Vec<T> lowest, const Shape<T>& shape, Vec<T>& factor) {
  constexpr Kernel smooth = kernel == Kernel::gauss ? kernel : Kernel::general;
  factor = broadcast(T(1));
  const Vec<T> lowest_before = load(st.lowest + at);
  lowest = least(lowest_before, lowest);
  const Vec<T> before = load(st.reference + at), constant = load(st.constant + at);
  const Vec<T> slack = shape.products ? load(st.slack + at) : lowest * T(2 * shape.error);
  const Vec<T> precise = lowest <= load(st.high + at) ? greatest(lowest, load(st.low + at)) : before;
  const Vec<T> reference = least(before, precise), reach = load(st.reach + at);
  store(st.lowest + at, lowest);
  if constexpr (kernel == Kernel::gauss) store(st.band + at, lowest + slack + reach);
  else store(st.band + at, lowest + slack + (lowest + slack + constant) * reach);
  if (shape.products && at_most(lowest_before, lowest) != ALL<T>)
    for (int q = at; q < at + Types<T>::W; ++q) st.care[q] = careful(st, sweep, tile, q);
  const unsigned same = at_most(before, reference);
  if (same == ALL<T>) return false;
  store(st.reference + at, reference);
  if constexpr (kernel != Kernel::gauss) store(st.rate + at, reference < before ? T(1) / (reference + constant) : load(st.rate + at));
  for (int q = at; q < at + Types<T>::W; ++q)
    if (st.reference[q] != before[q - at]) st.distance[q] = st.reference[q] + tile.norm[q];
  const Vec<T> moved = log2_weight<smooth, T>(before - reference, load(st.rate + at), shape.power);
  const auto kept = before < broadcast(Types<T>::huge) && reference < before;
  if constexpr (masses) {
    store(st.level + at, load(st.level + at) + (kept ? moved : Vec<T>{}));
    return false;
  }
  factor = before < broadcast(Types<T>::huge) ? (kept ? exp2_of<T>(moved) : factor) : Vec<T>{};
  return true;
}

// The same for a lane whose nearest datum is known to double precision; returns the factor of its sums.
template <bool masses, class T> T settle_exactly(Softmax<T>& st, const Sweep<T>& sweep, const Tile<T>& tile, int q, double distance) {
  const double before = st.distance[q], scale = tile.scale[q];
  const bool first = !(st.reference[q] < Types<T>::huge);
  st.distance[q] = distance;
  st.reference[q] = T(distance - tile.norm[q]);
  if (!std::isinf(sweep.power)) st.rate[q] = T(1 / (distance + scale));
  if (first) return masses ? 1 : 0;
  const double log = std::isinf(sweep.power) ? (distance - before) / scale : -sweep.power * std::log1p((before - distance) / (distance + scale));
  if (!masses) return T(std::exp(log));
  st.level[q] += T(log * 1.44269504088896341);
  return 1;
}

// With log masses a_j: moves the level up to the largest log2 weight.
template <Kernel kernel, class T>
PFGM_INLINE bool raise_level(Softmax<T>& st, int at, const T* scores, int64_t n, const T* masses, const Frame<T>& frame, T power, Vec<T>& factor) {
  const Vec<T> rate = load(st.rate + at), before = load(st.level + at);
  Vec<T> level = before;
  for (int64_t j = 0; j < n; ++j) {
    const Vec<T> beyond = load(scores + j * QW<T>) - frame.reference;
    if (!at_most(beyond, frame.cut)) continue;
    const Vec<T> y = masses[j] + log2_weight<kernel, T>(greatest(beyond, Vec<T>{}), rate, power);
    level = greatest(level, beyond <= frame.cut ? y : broadcast(-Types<T>::huge));
  }
  store(st.level + at, level);
  factor = exp2_of<T>(before - level);
  return at_most(level, before) != ALL<T>;
}

// Adds what a tile has summed to its accumulators; copy(q, row) gives lane q's sums in T.
template <bool masses, class T, class Copy>
void hand_over(Softmax<T>& st, const Sweep<T>& sweep, const Tile<T>& tile, T* row, Copy copy) {
  for (int q = 0; q < QW<T>; ++q) {
    pfgm::Accumulator& acc = tile.accumulator[q];
    if (!acc.sum || !(st.total[q] > 0)) continue;
    if (st.handed[q] != st.distance[q]) {
      const double ratio = st.distance[q] / tile.scale[q];
      st.log[q] = std::isinf(sweep.power) ? -ratio : -sweep.power * std::log1p(ratio);
      st.handed[q] = st.distance[q];
    }
    double reference = st.log[q];
    if (masses) reference += st.level[q] * 0.69314718055994531 + sweep.top_log_weight;
    const double top = reference > acc.reference ? reference : acc.reference;
    const double keep = acc.reference == top ? 1 : std::exp(acc.reference - top), share = reference == top ? 1 : std::exp(reference - top);
    acc.reference = top;
    acc.total = acc.total * keep + share * st.total[q];
    copy(q, row);
    for (int64_t n = 0; n < sweep.N; ++n) acc.sum[n] = acc.sum[n] * keep + share * double(row[n]);
    st.total[q] = 0;
  }
}

}  // namespace
