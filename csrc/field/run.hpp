// What a sweep keeps, and what its tiles of few and of many dimensions share: delicate pairs taken exactly, weights of a block.
#pragma once
#include <cstring>

#include "field/products.hpp"
#include "field/softmax.hpp"

namespace {
using pfgm::Element;

constexpr int NARROW = 16;         // largest N that is held in registers
constexpr int64_t HAND_OVER_NARROW = 2048, HAND_OVER_WIDE = 512;  // rows after which sums go from T to double
constexpr int64_t SHORT_SUM = 16;  // small weights beside a large one round at each addition: they are summed apart first
constexpr int64_t NARROW_ROWS = 128;
constexpr int LONG_SUM = 16;  // rows in one running sum of a wide block
constexpr int64_t BLOCK_BYTES = int64_t(640) << 10;

int64_t narrow_size(int64_t N) { return N <= 4 ? N : N <= 8 ? 8 : NARROW; }

template <class T> int64_t row_length(int64_t N) {
  if (N <= NARROW) return narrow_size(N);
  const int64_t ld = (N + Types<T>::W - 1) / Types<T>::W * Types<T>::W;
  return ld % 256 ? ld : ld + Types<T>::W;  // rows a power of two apart share cache sets
}

template <class T> int64_t block_rows(int64_t N) {
  if (N <= NARROW) return NARROW_ROWS;
  const int64_t rows = BLOCK_BYTES / int64_t(sizeof(T)) / row_length<T>(N) / ROWS * ROWS;
  return rows < 3 * ROWS ? 3 * ROWS : rows > 16 * ROWS ? 16 * ROWS : rows;
}

// Memory of a sweep, cut from one allocation.
template <class T>
struct Workspace {
  T *center, *block, *norms, *scores, *masses, *sums, *row;
  double *query, *distance;  // of the delicate rows
  int32_t *pick, *list;      // rows of the block: with weight in some lane; delicate, by lane of a group
  int* listed;
  Softmax<T>* state;
  int64_t bytes;

  Workspace(int64_t N, int64_t tiles, char* base) {
    constexpr int W = Types<T>::W;
    const int64_t ld = row_length<T>(N), rows = block_rows<T>(N);
    char* at = base;
    auto take = [&](auto*& p, int64_t count) {
      p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(at);
      at += (count * int64_t(sizeof(*p)) + 63) / 64 * 64;
    };
    take(state, tiles);
    take(center, ld);
    take(block, rows * ld);
    take(norms, rows);
    take(scores, rows * QW<T>);
    take(masses, rows);
    take(sums, tiles * QW<T> * ld);
    take(row, ld);
    take(query, N);
    take(distance, rows * W);
    take(pick, rows);
    take(list, rows * W);
    take(listed, W);
    bytes = at - base;
  }
};

template <class T>
struct Run {
  const Sweep<T>& sweep;
  Workspace<T> ws;
  Shape<T> shape;
  int64_t ld, rows;
  Ahead ahead;
  double largest;  // squared norm in the block
};

template <class T> PFGM_INLINE bool has_delicate(const Softmax<T>& st, int at) {
  return at_most(load(st.low + at), load(st.lowest + at)) != ALL<T> || at_most(load(st.band + at), load(st.high + at)) != ALL<T>;
}

// Lists the delicate pairs of a block by lane; false if there are none.
template <class T> bool list_delicate(Run<T>& run, const Softmax<T>& st, int at, int64_t n) {
  const Vec<T> band = least(load(st.band + at), load(st.care + at)), low = load(st.low + at), high = load(st.high + at);
  unsigned any = 0;
  std::memset(run.ws.listed, 0, sizeof(int) * Types<T>::W);
  for (int64_t j = 0; j < n; ++j) {
    const Vec<T> s = load(run.ws.scores + j * QW<T> + at);
    unsigned bits = at_most(s, band);
    if (bits) bits &= ~(at_most(low, s) & at_most(s, high));
    any |= bits;
    for (; bits; bits &= bits - 1) {
      const int q = __builtin_ctz(bits);
      run.ws.list[q * run.rows + run.ws.listed[q]++] = int32_t(j);
    }
  }
  return any;
}

// The scores up to the band; the one at the reference is among them even if an error was larger than was thought possible.
template <class T> PFGM_INLINE Frame<T> frame_of(const Softmax<T>& st, int at) {
  const Vec<T> reference = load(st.reference + at);
  return {reference, greatest(load(st.band + at) - reference, least(load(st.reach + at), Vec<T>{}))};
}

// Puts exact scores in the place of the delicate ones: all scores of the group become relative to the lane's reference.
template <bool masses, class T>
Frame<T> take_exactly(Run<T>& run, Softmax<T>& st, const Tile<T>& tile, int at, int64_t first, int64_t n, Vec<T>& factor) {
  const Sweep<T>& sweep = run.sweep;
  Workspace<T>& ws = run.ws;
  unsigned outside = 0;
  for (int q = 0; q < Types<T>::W; ++q) {
    if (!ws.listed[q]) continue;
    if (tile.exact[at + q]) {
      add_exactly(sweep, tile, at + q, first, n, ws.query);
      outside |= 1u << q;
      ws.listed[q] = 0;
      continue;
    }
    for (int64_t k = 0; k < sweep.N; ++k) ws.query[k] = tile.x[at + q][k] * sweep.unit;
    double nearest = INFINITY;
    for (int i = 0; i < ws.listed[q]; ++i) {
      const int64_t j = ws.list[q * run.rows + i];
      const double distance = exact_distance(sweep, ws.query, first + j);
      st.lost[at + q] |= run.shape.products && !(std::fabs(distance - tile.norm[at + q] - ws.scores[j * QW<T> + at + q]) <= st.slack[at + q]);
      ws.distance[q * run.rows + i] = distance;
      nearest = distance < nearest ? distance : nearest;
    }
    if (!(st.reference[at + q] < Types<T>::huge) || nearest < st.distance[at + q])
      factor[q] *= settle_exactly<masses>(st, sweep, tile, at + q, nearest);
  }
  Frame<T> frame = frame_of(st, at);
  for (int64_t j = 0; j < n; ++j) store(ws.scores + j * QW<T> + at, load(ws.scores + j * QW<T> + at) - frame.reference);
  frame.reference = Vec<T>{};
  for (int q = 0; q < Types<T>::W; ++q)
    for (int i = 0; i < ws.listed[q]; ++i)
      ws.scores[ws.list[q * run.rows + i] * QW<T> + at + q] = T(ws.distance[q * run.rows + i] - st.distance[at + q]);
  for (int q = 0; q < Types<T>::W; ++q)
    if (outside >> q & 1) frame.cut[q] = -INFINITY;
  return frame;
}

// The weights of one group of lanes for a block, handed to add(j, w) row by row where any is not zero (`all`: none is); pause()
// after a short sum.
template <Kernel kernel, bool masses, bool all, class T, class Add, class Pause>
PFGM_INLINE void weigh(Run<T>& run, Softmax<T>& st, int at, int64_t n, const Frame<T>& frame, Add add, Pause pause) {
  const Vec<T> rate = load(st.rate + at), level = load(st.level + at);
  for (int64_t j = 0; j < n;) {
    for (const int64_t end = j + SHORT_SUM < n ? j + SHORT_SUM : n; j < end; ++j) {
      const Vec<T> beyond = load(run.ws.scores + j * QW<T> + at) - frame.reference;
      if (!all && !at_most(beyond, frame.cut)) continue;
      const Vec<T> safe = all ? beyond : greatest(beyond, Vec<T>{});  // a score too low by its error weighs no more than the nearest
      Vec<T> w;
      if constexpr (masses) w = exp2_of<T>(run.ws.masses[j] + log2_weight<kernel, T>(safe, rate, run.shape.power) - level);
      else w = weight<kernel, T>(safe, rate, run.shape);
      if (!all) w = beyond <= frame.cut ? w : Vec<T>{};
      add(j, w);
    }
    pause();
  }
}

// Settles the reference of a group for a block; returns whether its sums must be multiplied by `factor`.
template <Kernel kernel, bool masses, class T>
PFGM_INLINE bool prepare_group(Run<T>& run, Softmax<T>& st, const Tile<T>& tile, int at, int64_t first, int64_t n, Vec<T> lowest,
                               Frame<T>& frame, Vec<T>& factor) {
  bool rescale = settle<kernel, masses, T>(st, run.sweep, tile, at, lowest, run.shape, factor);
  frame = frame_of(st, at);
  if (__builtin_expect(has_delicate(st, at), 0) && list_delicate(run, st, at, n)) {
    frame = take_exactly<masses>(run, st, tile, at, first, n, factor);
    rescale = true;
  }
  if constexpr (masses) rescale = raise_level<kernel, T>(st, at, run.ws.scores + at, n, run.ws.masses, frame, run.shape.power, factor);
  if (rescale)
    for (int q = 0; q < Types<T>::W; ++q) st.total[at + q] *= factor[q];
  return rescale;
}

}  // namespace
