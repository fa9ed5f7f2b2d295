// One sweep of some tiles of queries over some rows of data; compiled once for each instruction set.
#include <cstring>

#include "field/run.hpp"

namespace {

template <Kernel kernel, bool masses, class T> void wide_tile(Run<T>& run, int64_t t, int64_t first, int64_t n) {
  constexpr int W = Types<T>::W;
  const Tile<T>& tile = run.sweep.tile[t];
  Softmax<T>& st = run.ws.state[t];
  T* sums = run.ws.sums + t * QW<T> * run.ld;
  if (run.shape.products) score_block<true>(tile.panel, run.ws.block, run.ld, n, run.sweep.N, run.ws.norms, run.ws.scores, run.ahead);
  else score_block<false>(tile.panel, run.ws.block, run.ld, n, run.sweep.N, run.ws.norms, run.ws.scores, run.ahead);
  for (int at = 0; at < QW<T>; at += W) {
    Vec<T> lowest = broadcast(Types<T>::huge), factor;
    Frame<T> frame;
    for (int64_t j = 0; j < n; ++j) lowest = least(lowest, load(run.ws.scores + j * QW<T> + at));
    if (prepare_group<kernel, masses, T>(run, st, tile, at, first, n, lowest, frame, factor))
      for (int q = 0; q < W; ++q)
        if (factor[q] != 1) scale_sums<T>(sums + at * run.ld, run.ld, q, factor[q]);
    int count = 0;
    Vec<T> total{}, lost{};
    weigh<kernel, masses, false, T>(run, st, at, n, frame, [&](int64_t j, Vec<T> w) {
      const Vec<T> before = total;
      total += w;
      lost += w - (total - before);  // equal weights would all round the same way
      store(run.ws.scores + count * QW<T> + at, w);  // over scores that have been read
      run.ws.pick[count++] = int32_t(j);
    }, [] {});
    add_total(st, at, total);
    add_total(st, at, lost);
    const int32_t* pick = run.ws.pick;
    for (int i = 0, end = 0; i < count; i = end) {  // where a sum is cut depends on the row of data, not on the lanes beside
      while (end < count && pick[end] / LONG_SUM == pick[i] / LONG_SUM) ++end;
      sum_block<T>(run.ws.scores + i * QW<T> + at, pick + i, end - i, run.ws.block, run.ld, sums + at * run.ld, run.ahead);
    }
  }
}

constexpr double PLAIN_NEAR = 1e14, PLAIN_FAR = 1e28;  // of squared distance / scale: weights of 1e-21, and of less than float has

// A lane is plain if the first datum is not too far for it: its weights are relative to a datum at distance 0. Where all lanes are,
// and no datum of a block is so far that its weight overflows, nothing needs to be compared.
template <int N, class T> void start_plain(Run<T>& run, Softmax<T>& st, const Tile<T>& tile, int at) {
  double room = INFINITY;
  for (int q = at; q < at + Types<T>::W; ++q) {
    double distance = 0, norm = 0;
    for (int k = 0; k < N; ++k) {
      const double x = tile.panel[k * QW<T> + q], d = x - run.ws.block[k];
      distance += d * d;
      norm += x * x;
    }
    if (tile.exact[q] || distance > PLAIN_NEAR * tile.scale[q]) {
      room = -INFINITY;
      continue;
    }
    st.lowest[q] = st.reference[q] = 0;
    st.rate[q] = 1 / st.constant[q];
    if (tile.accumulator[q].sum) st.reach[q] = T(PLAIN_FAR);
    room = std::fmin(room, PLAIN_FAR * tile.scale[q] / 2 - norm);
  }
  st.room[at / Types<T>::W] = room;
}

// Plain lanes take a block in one pass: no score is kept, and none is compared.
template <int N, Kernel kernel, class T> PFGM_INLINE void plain_group(Run<T>& run, Softmax<T>& st, const Tile<T>& tile, T* sums, int at, int64_t n) {
  const T* y = run.ws.block;
  const Vec<T> rate = load(st.rate + at);
  Vec<T> x[N], part[N], total{};
  for (int k = 0; k < N; ++k) x[k] = load(tile.panel + k * QW<T> + at), part[k] = Vec<T>{};
  for (int64_t j = 0; j < n;) {
    Vec<T> some[N], few{};
    for (int k = 0; k < N; ++k) some[k] = Vec<T>{};
    for (const int64_t end = j + SHORT_SUM < n ? j + SHORT_SUM : n; j < end; ++j) {
      Vec<T> rho{};
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) {
        const Vec<T> d = x[k] - y[j * N + k];
        rho += d * d;
      }
      const Vec<T> w = weight<kernel, T>(rho, rate, run.shape);
      few += w;
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) some[k] += w * y[j * N + k];
    }
    total += few;
    for (int k = 0; k < N; ++k) part[k] += some[k];
  }
  add_total(st, at, total);
  for (int k = 0; k < N; ++k) store(sums + k * QW<T> + at, load(sums + k * QW<T> + at) + part[k]);
}

template <int N, Kernel kernel, bool masses, class T> void narrow_tile(Run<T>& run, int64_t t, int64_t first, int64_t n) {
  constexpr int W = Types<T>::W;
  const Tile<T>& tile = run.sweep.tile[t];
  Softmax<T>& st = run.ws.state[t];
  T* sums = run.ws.sums + t * QW<T> * N;
  const T* y = run.ws.block;
  for (int at = 0; at < QW<T>; at += W) {
    if constexpr (kernel == Kernel::cube_root) {
      if (first == run.sweep.begin) start_plain<N, T>(run, st, tile, at);
      if (run.largest <= st.room[at / W]) {
        plain_group<N, kernel, T>(run, st, tile, sums, at, n);
        continue;
      }
    }
    Vec<T> x[N], lowest = broadcast(Types<T>::huge), highest{}, factor, part[N], some[N], total{}, few{};
    Frame<T> frame;
    for (int k = 0; k < N; ++k) x[k] = load(tile.panel + k * QW<T> + at), part[k] = some[k] = Vec<T>{};
    for (int64_t j = 0; j < n; ++j) {
      Vec<T> rho{};
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) {
        const Vec<T> d = x[k] - y[j * N + k];
        rho += d * d;
      }
      store(run.ws.scores + j * QW<T> + at, rho);
      lowest = least(lowest, rho);
      highest = greatest(highest, rho);
    }
    if (prepare_group<kernel, masses, T>(run, st, tile, at, first, n, lowest, frame, factor))
      for (int k = 0; k < N; ++k) store(sums + k * QW<T> + at, load(sums + k * QW<T> + at) * factor);
    const auto add = [&](int64_t j, Vec<T> w) {
      few += w;
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) some[k] += w * y[j * N + k];
    };
    const auto pause = [&] {
      total += few, few = Vec<T>{};
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) part[k] += some[k], some[k] = Vec<T>{};
    };
    if (at_most(highest - frame.reference, frame.cut) == ALL<T>) weigh<kernel, masses, true, T>(run, st, at, n, frame, add, pause);
    else weigh<kernel, masses, false, T>(run, st, at, n, frame, add, pause);
    add_total(st, at, total);
    for (int k = 0; k < N; ++k) store(sums + k * QW<T> + at, load(sums + k * QW<T> + at) + part[k]);
  }
}

template <class T> T pack_block(Run<T>& run, int64_t first, int64_t n) {
  const Sweep<T>& sweep = run.sweep;
  const int64_t N = sweep.N, ld = run.ld;
  Workspace<T>& ws = run.ws;
  if (sweep.log_weights)
    for (int64_t j = 0; j < n; ++j) ws.masses[j] = T((sweep.log_weights[first + j] - sweep.top_log_weight) * 1.44269504088896341);
  switch (sweep.element) {
    case Element::f32: return pack(static_cast<const float*>(sweep.data) + first * N, n, N, ws.center, ws.block, ld, ws.norms);
    case Element::f64: return pack(static_cast<const double*>(sweep.data) + first * N, n, N, ws.center, ws.block, ld, ws.norms);
    default: return pack(static_cast<const uint8_t*>(sweep.data) + first * N, n, N, ws.center, ws.block, ld, ws.norms);
  }
}

template <class T> Ahead look_ahead(const Sweep<T>& sweep, int64_t first) {
  const int64_t size = sweep.element == Element::u8 ? 1 : sweep.element == Element::f32 ? 4 : 8;
  return {static_cast<const char*>(sweep.data) + first * sweep.N * size, (size * ROWS + 2 * sweep.tiles - 1) / (2 * sweep.tiles)};  // as many steps in scores as in sums
}

template <Kernel kernel, bool masses, class T> auto tile_function(int64_t N) {
  using Function = void (*)(Run<T>&, int64_t, int64_t, int64_t);
  if (N > NARROW) return Function(&wide_tile<kernel, masses, T>);
  switch (narrow_size(N)) {
    case 1: return Function(&narrow_tile<1, kernel, masses, T>);
    case 2: return Function(&narrow_tile<2, kernel, masses, T>);
    case 3: return Function(&narrow_tile<3, kernel, masses, T>);
    case 4: return Function(&narrow_tile<4, kernel, masses, T>);
    case 8: return Function(&narrow_tile<8, kernel, masses, T>);
    default: return Function(&narrow_tile<NARROW, kernel, masses, T>);
  }
}

template <Kernel kernel, bool masses, class T> void sweep_with(Run<T>& run) {
  const Sweep<T>& sweep = run.sweep;
  const auto visit = tile_function<kernel, masses, T>(sweep.N);
  const bool narrow = sweep.N <= NARROW;
  const int64_t hand_over_after = (narrow ? HAND_OVER_NARROW : HAND_OVER_WIDE) / run.rows;  // blocks
  auto hand_over_tile = [&](int64_t t) {
    T* sums = run.ws.sums + t * QW<T> * run.ld;
    hand_over<masses>(run.ws.state[t], sweep, sweep.tile[t], run.ws.row, [&](int q, T* row) {
      constexpr int W = Types<T>::W;
      if (!narrow) return copy_sums<T>(sums + q / W * W * run.ld, run.ld, q % W, row);
      for (int64_t n = 0; n < sweep.N; ++n) row[n] = sums[n * QW<T> + q];
    });
    std::memset(sums, 0, sizeof(T) * QW<T> * run.ld);
  };
  // Where the bound on an error did not hold, there is still an answer: all in double.
  auto repair = [&](int64_t t) {
    for (int q = 0; q < QW<T>; ++q) {
      pfgm::Accumulator& acc = sweep.tile[t].accumulator[q];
      if (!acc.sum || (!run.ws.state[t].lost[q] && acc.total > 0 && acc.total < INFINITY)) continue;
      acc.reference = -INFINITY, acc.total = 0;
      std::memset(acc.sum, 0, sizeof(double) * sweep.N);
      add_exactly(sweep, sweep.tile[t], q, sweep.begin, sweep.end - sweep.begin, run.ws.query);
    }
  };
  double largest = 0;
  int64_t blocks = 0;
  for (int64_t first = sweep.begin; first < sweep.end; first += run.rows, ++blocks) {
    const int64_t n = sweep.end - first < run.rows ? sweep.end - first : run.rows;
    const double here = pack_block(run, first, n);
    run.ahead = look_ahead(sweep, first + n);
    run.largest = here;
    const bool fits = here < Types<T>::safe;
    const bool grew = fits && run.shape.products && here > largest;
    if (grew) largest = here;
    for (int64_t t = 0; t < sweep.tiles; ++t) {
      if (grew) {
        run.ws.state[t].largest = largest;
        set_precision(run.ws.state[t], sweep, sweep.tile[t], run.shape);
      }
      if (fits) visit(run, t, first, n);
      else
        for (int q = 0; q < QW<T>; ++q)
          if (sweep.tile[t].accumulator[q].sum) add_exactly(sweep, sweep.tile[t], q, first, n, run.ws.query);
      if (blocks % hand_over_after == hand_over_after - 1 || first + n == sweep.end) hand_over_tile(t);
    }
  }
  for (int64_t t = 0; t < sweep.tiles; ++t) repair(t);
}

template <class T> bool uses_products(int64_t N) { return sizeof(T) == 4 && N > NARROW; }

template <class T> void sweep_all(const Sweep<T>& sweep, void* workspace) {
  Run<T> run{sweep, Workspace<T>(sweep.N, sweep.tiles, static_cast<char*>(workspace)), {}, row_length<T>(sweep.N), block_rows<T>(sweep.N), {}, 0};
  Shape<T>& shape = run.shape;
  shape.power = T(sweep.power);
  shape.products = uses_products<T>(sweep.N);
  shape.error = Types<T>::half_epsilon * (3 + 0.5 * sweep.N);
  for (int64_t n = 0; n < run.ld; ++n) run.ws.center[n] = n < sweep.N ? T(sweep.center[n]) : 0;
  std::memset(run.ws.sums, 0, sizeof(T) * sweep.tiles * QW<T> * run.ld);
  for (int64_t t = 0; t < sweep.tiles; ++t) {
    if (shape.products) product_errors(sweep.tile[t].panel, sweep.N, sweep.tile[t].norm, run.ws.state[t]);
    start(run.ws.state[t], sweep, sweep.tile[t], shape);
  }

  const bool masses = sweep.log_weights;
  const double twice = 2 * sweep.power;
  if (std::isinf(sweep.power)) return masses ? sweep_with<Kernel::gauss, true>(run) : sweep_with<Kernel::gauss, false>(run);
  if (masses) return sweep_with<Kernel::general, true>(run);
  if constexpr (sizeof(T) == 4) {
    if (twice == 3) return sweep_with<Kernel::cube_root, false>(run);
    shape.twice_power = twice <= 10 && twice == int(twice) ? int(twice) : 0;
    if (shape.twice_power) return sweep_with<Kernel::root, false>(run);
    if (std::expm1(sweep.negligible / sweep.power) <= 0.5) return sweep_with<Kernel::near_one, false>(run);
  }
  sweep_with<Kernel::general, false>(run);
}

template <class T> int64_t workspace_bytes(int64_t N, int64_t tiles) { return Workspace<T>(N, tiles, nullptr).bytes; }

template <class T> constexpr pfgm::Kernels<T> kernels() { return {QW<T>, &uses_products<T>, &workspace_bytes<T>, &sweep_all<T>}; }

}  // namespace

#define PFGM_JOIN(a, b) a##b
#define PFGM_NAME(a, b) PFGM_JOIN(a, b)
#define PFGM_STRING(a) #a
#define PFGM_TEXT(a) PFGM_STRING(a)

namespace pfgm {
extern const InstructionSet PFGM_NAME(instruction_set_, PFGM_ISA);
const InstructionSet PFGM_NAME(instruction_set_, PFGM_ISA) = {PFGM_TEXT(PFGM_ISA), kernels<float>(), kernels<double>()};
}  // namespace pfgm
