// Rows to tiles, tiles and data to tasks, tasks to threads, and the sums back to rows. The result of a row depends on that row and
// the data alone: how the data is split is fixed by its size, and the splits are merged in order.
#include "field/field.hpp"

#include <omp.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "field/sweep.hpp"

namespace pfgm {

extern const InstructionSet instruction_set_base;
#ifndef PFGM_BASE_ONLY
extern const InstructionSet instruction_set_avx2, instruction_set_avx512;
#endif

namespace {

std::vector<const InstructionSet*> runnable() {
  std::vector<const InstructionSet*> sets{&instruction_set_base};
#ifndef PFGM_BASE_ONLY
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) sets.push_back(&instruction_set_avx2);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    sets.push_back(&instruction_set_avx512);
#endif
  return sets;
}

const InstructionSet*& active() {
  static const InstructionSet* set = runnable().back();
  return set;
}

template <class T> const Kernels<T>& kernels();
template <> const Kernels<float>& kernels() { return active()->f32; }
template <> const Kernels<double>& kernels() { return active()->f64; }

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<char, Free>;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

Memory allocate(int64_t bytes) {
  constexpr int64_t HUGE_PAGE = int64_t(2) << 20;
  const int64_t unit = bytes >= HUGE_PAGE ? HUGE_PAGE : 64, size = round_up(bytes, unit);
  void* p = std::aligned_alloc(size_t(unit), size_t(size));
  if (!p) throw std::bad_alloc();
#ifdef __linux__
  if (unit == HUGE_PAGE) madvise(p, size_t(size), MADV_HUGEPAGE);  // columns of a block lie on many pages
#endif
  return Memory(static_cast<char*>(p));
}

struct Range {
  int64_t begin, end;
  bool operator==(const Range& o) const { return begin == o.begin && end == o.end; }
};

// Into how many parts a range of data is split for the threads: a function of its size alone.
int64_t splits(Range range, int64_t N) {
  int64_t parts = 1;
  while (parts < 16 && (range.end - range.begin) * N >= (parts * 2) << 22) parts *= 2;
  return parts;
}

constexpr double LARGE_FLOAT = 1e30, LARGE_DOUBLE = 1e280, LARGE_RANGE = 1e3;  // beyond which a row is summed in double
constexpr int64_t CHUNK_BYTES = int64_t(64) << 20, CHUNK_WORK = int64_t(4) << 30;

template <class T>
struct Job {
  const Problem& p;
  const double unit;
  const bool products;
  const int lanes;
  const int64_t depth;                 // length of a row of the panel
  std::vector<double> center;          // zeros for differences

  explicit Job(const Problem& problem)
      : p(problem),
        unit(p.element == Element::u8 ? 255 : 1),
        products(kernels<T>().products(p.N)),
        lanes(kernels<T>().lanes),
        depth(std::max<int64_t>(p.N, 16)),
        center(p.N, 0.0) {
    if (products) std::copy(p.center, p.center + p.N, center.begin());
  }

  const T* row(int64_t i) const { return static_cast<const T*>(p.x) + i * p.N; }
  T* out(int64_t i) const { return static_cast<T*>(p.mean) + i * p.N; }
  Range range(int64_t i) const { return p.segments ? Range{p.segments[2 * i], p.segments[2 * i + 1]} : Range{0, p.M}; }

  void fail(int64_t i) const {
    std::fill(out(i), out(i) + p.N, std::numeric_limits<T>::quiet_NaN());
    p.log_sum[i] = std::numeric_limits<double>::quiet_NaN();
  }

  // Rows that have an answer, those of one range of data and of like scale side by side.
  std::vector<int64_t> ordered() const {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < p.B; ++i) {
      const Range r = range(i);
      bool good = p.scale[i] > 0 && r.begin < r.end;
      for (int64_t n = 0; n < p.N && good; ++n) good = std::isfinite(row(i)[n]);
      if (good) rows.push_back(i);
      else fail(i);
    }
    std::stable_sort(rows.begin(), rows.end(), [&](int64_t a, int64_t b) {
      const Range s = range(a), t = range(b);
      if (!(s == t)) return s.begin != t.begin ? s.begin < t.begin : s.end < t.end;
      return p.scale[a] < p.scale[b];
    });
    return rows;
  }
};

// One tile with what it owns.
template <class T>
struct TileRows {
  std::vector<int64_t> rows;
  Range range;
  double top_log_weight = 0, log_weight_range = 0;  // within the range
  int64_t parts;
  T* panel;
  double* sums;  // (parts, rows, N)
  std::vector<const T*> x;
  std::vector<double> norm, scale;
  std::unique_ptr<bool[]> exact;
  std::vector<Accumulator> accumulators;  // (parts, lanes)

  void prepare(const Job<T>& job) {
    const int lanes = job.lanes;
    x.assign(lanes, job.row(rows[0]));
    norm.assign(lanes, 0.0);
    scale.assign(lanes, 1.0);
    exact = std::make_unique<bool[]>(lanes);
    accumulators.assign(parts * lanes, {-INFINITY, 0, nullptr});
  }

  void fill(const Job<T>& job) {
    const int64_t N = job.p.N;
    const int lanes = job.lanes;
    std::fill(panel, panel + job.depth * lanes, T(0));
    std::fill(sums, sums + parts * int64_t(rows.size()) * N, 0.0);
    for (size_t q = 0; q < rows.size(); ++q) {
      x[q] = job.row(rows[q]);
      scale[q] = job.p.scale[rows[q]] * job.unit * job.unit;
      for (int64_t part = 0; part < parts; ++part)
        accumulators[part * lanes + q].sum = sums + (part * int64_t(rows.size()) + int64_t(q)) * N;
    }
    constexpr int64_t NEAR = 256;  // rows of the panel that stay in the first cache while all lanes are written
    for (int64_t first = 0; first < N; first += NEAR)
      for (size_t q = 0; q < rows.size(); ++q) {
        double square = 0;
        for (int64_t n = first; n < std::min(N, first + NEAR); ++n) {
          const double v = x[q][n] * job.unit - job.center[n];
          square += v * v;
          panel[n * lanes + q] = T(job.products ? -2 * v : v);
        }
        norm[q] += square;
      }
    const double large = sizeof(T) == 4 ? LARGE_FLOAT : LARGE_DOUBLE;
    for (size_t q = 0; q < rows.size(); ++q) {
      exact[q] = !(norm[q] < large && scale[q] < large && scale[q] > 1 / large && log_weight_range < LARGE_RANGE);
      if (!job.products || exact[q]) norm[q] = 0;
      if (exact[q])
        for (int64_t n = 0; n < N; ++n) panel[n * lanes + q] = 0;
    }
  }

  void finish(const Job<T>& job) {
    const int64_t N = job.p.N;
    for (size_t q = 0; q < rows.size(); ++q) {
      Accumulator* first = accumulators.data() + q;
      double reference = -INFINITY, total = 0;
      for (int64_t part = 0; part < parts; ++part) reference = std::max(reference, first[part * job.lanes].reference);
      double* sum = first->sum;
      for (int64_t part = 0; part < parts; ++part) {
        const Accumulator& acc = first[part * job.lanes];
        const double share = acc.total > 0 ? std::exp(acc.reference - reference) : 0;
        total += share * acc.total;
        for (int64_t n = 0; n < N; ++n) sum[n] = (part ? sum[n] : 0) + share * acc.sum[n];
      }
      if (!(total > 0)) {
        job.fail(rows[q]);
        continue;
      }
      T* out = job.out(rows[q]);
      for (int64_t n = 0; n < N; ++n) out[n] = T((sum[n] / total + job.center[n]) / job.unit);
      job.p.log_sum[rows[q]] = reference + std::log(total);
    }
  }
};

// Some tiles that share a range of data, and one part of that range.
template <class T>
struct Task {
  std::vector<Tile<T>> tiles;
  Range range;
  double top_log_weight, log_weight_range;
};

template <class T> std::vector<Task<T>> tasks_of(std::vector<TileRows<T>>& tiles, int threads) {
  std::vector<Task<T>> tasks;
  for (size_t begin = 0, end = 0; begin < tiles.size(); begin = end) {
    while (end < tiles.size() && tiles[end].range == tiles[begin].range) ++end;
    const Range range = tiles[begin].range;
    const int64_t parts = tiles[begin].parts;
    const size_t hands = std::min<size_t>(end - begin, size_t((threads + parts - 1) / parts));
    for (size_t hand = 0; hand < hands; ++hand)
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t count = range.end - range.begin;
        Task<T> task{{}, {range.begin + count * part / parts, range.begin + count * (part + 1) / parts},
                     tiles[begin].top_log_weight, tiles[begin].log_weight_range};
        for (size_t t = begin + hand; t < end; t += hands) {
          TileRows<T>& tile = tiles[t];
          task.tiles.push_back({tile.panel, tile.x.data(), tile.norm.data(), tile.scale.data(), tile.exact.get(),
                                tile.accumulators.data() + part * int64_t(tile.x.size())});
        }
        tasks.push_back(std::move(task));
      }
  }
  return tasks;
}

template <class T> void run(const Job<T>& job, std::vector<TileRows<T>>& tiles) {
  const Problem& p = job.p;
  const int threads = std::max(1, p.threads);
  const int64_t count = int64_t(tiles.size());
  const int64_t panel_bytes = round_up(job.depth * job.lanes * int64_t(sizeof(T)), 64);
  const auto sums_bytes = [&](const TileRows<T>& tile) { return round_up(tile.parts * int64_t(tile.rows.size()) * p.N * int64_t(sizeof(double)), 64); };
  int64_t bytes = 0;
  for (const TileRows<T>& tile : tiles) bytes += panel_bytes + sums_bytes(tile);
  const Memory memory = allocate(bytes);
  char* at = memory.get();
  for (TileRows<T>& tile : tiles) {
    tile.panel = reinterpret_cast<T*>(at);
    tile.sums = reinterpret_cast<double*>(at + panel_bytes);
    at += panel_bytes + sums_bytes(tile);
    tile.prepare(job);
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < count; ++t) tiles[t].fill(job);

  const std::vector<Task<T>> tasks = tasks_of(tiles, threads);
  int64_t most = 0;
  for (const Task<T>& task : tasks) most = std::max(most, int64_t(task.tiles.size()));
  const int hands = int(std::min<int64_t>(threads, int64_t(tasks.size())));
  std::vector<Memory> workspaces;
  for (int i = 0; i < hands; ++i) workspaces.push_back(allocate(kernels<T>().workspace(p.N, most)));
#pragma omp parallel for schedule(dynamic, 1) num_threads(hands) if (hands > 1)
  for (int64_t i = 0; i < int64_t(tasks.size()); ++i) {
    const Task<T>& task = tasks[i];
    const Sweep<T> sweep{p.data, p.element, p.N, task.range.begin, task.range.end, job.center.data(), p.log_weights, task.top_log_weight,
                         task.log_weight_range, p.power, job.unit,
                         // one rounding of the whole, shared by all the data
                         std::log(2 / std::numeric_limits<T>::epsilon() * double(p.M)), int64_t(task.tiles.size()), task.tiles.data()};
    kernels<T>().sweep(sweep, workspaces[omp_get_thread_num()].get());
  }

#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < count; ++t) tiles[t].finish(job);
}

template <class T> void posterior(const Problem& p) {
  const Job<T> job(p);
  const std::vector<int64_t> rows = job.ordered();
  std::vector<TileRows<T>> tiles;
  int64_t bytes = 0, work = 0;
  for (size_t i = 0; i < rows.size();) {
    TileRows<T> tile;
    tile.range = job.range(rows[i]);
    tile.parts = splits(tile.range, p.N);
    if (p.log_weights && !tiles.empty() && tiles.back().range == tile.range) {
      tile.top_log_weight = tiles.back().top_log_weight;
      tile.log_weight_range = tiles.back().log_weight_range;
    } else if (p.log_weights) {
      const auto [low, high] = std::minmax_element(p.log_weights + tile.range.begin, p.log_weights + tile.range.end);
      tile.top_log_weight = *high;
      tile.log_weight_range = *high - *low;
    }
    for (; i < rows.size() && int(tile.rows.size()) < job.lanes && job.range(rows[i]) == tile.range; ++i) tile.rows.push_back(rows[i]);
    bytes += tile.parts * job.lanes * p.N * int64_t(sizeof(double));
    work += job.lanes * (tile.range.end - tile.range.begin) * job.depth;
    tiles.push_back(std::move(tile));
    const bool enough = int(tiles.size()) >= p.threads && (bytes >= CHUNK_BYTES || work >= CHUNK_WORK * p.threads);
    if (enough || i == rows.size()) {
      run(job, tiles);
      tiles.clear();
      bytes = work = 0;
      if (p.interrupted && p.interrupted()) return;
    }
  }
}

}  // namespace

void posterior_float(const Problem& p) { posterior<float>(p); }
void posterior_double(const Problem& p) { posterior<double>(p); }

const char* instruction_set() { return active()->name; }

bool select_instruction_set(const char* name) {
  for (const InstructionSet* set : runnable())
    if (!std::strcmp(set->name, name)) {
      active() = set;
      return true;
    }
  return false;
}

}  // namespace pfgm
