// Blocked products: a block of data, widened and centred, against a tile of queries.
#pragma once
#include <type_traits>

#include "field/softmax.hpp"

namespace {

template <class E, int count> struct Stored { typedef PFGM_LOOSE(E, count * sizeof(E)) vec; };

// W elements of data as a vector of T; 8-bit pixels as whole numbers.
template <class T, class E> PFGM_INLINE Vec<T> widen(const E* y) {
  const auto v = *(const typename Stored<E, Types<T>::W>::vec*)y;
  if constexpr (sizeof(E) == 1) return __builtin_convertvector(__builtin_convertvector(v, IVec<T>) * 2 - 255, Vec<T>);
  else return __builtin_convertvector(v, Vec<T>);
}

// Copies rows into a block of row length `ld` (zeros behind N), less `center`; squared norms too, and returns the largest.
template <class T, class E>
T pack(const E* __restrict data, int64_t rows, int64_t N, const T* __restrict center, T* __restrict block, int64_t ld, T* norms) {
  constexpr int W = Types<T>::W, SHORT = 4;  // vectors whose squares are added in T before they join a sum in double
  using Wide = typename Types<T>::wide;
  T largest = 0;
  for (int64_t j = 0; j < rows; ++j) {
    const E* y = data + j * N;
    T* out = block + j * ld;
    Wide squares{};
    double rest = 0;
    int64_t n = 0;
    const auto copy = [&] {
      const Vec<T> v = widen<T>(y + n) - load(center + n);
      store(out + n, v);
      n += W;
      return v * v;
    };
    if (N >= W) {
      while (n + SHORT * W <= N) {
        Vec<T> some = copy();
        for (int i = 1; i < SHORT; ++i) some += copy();
        squares += __builtin_convertvector(some, Wide);
      }
      while (n + W <= N) squares += __builtin_convertvector(copy(), Wide);
    }
    for (; n < N; ++n) {
      out[n] = T(raw(y[n])) - center[n];
      rest += double(out[n]) * out[n];
    }
    for (; n < ld; ++n) out[n] = 0;
    if (N >= W)
      for (int i = 0; i < W; ++i) rest += squares[i];
    norms[j] = T(rest);
    largest = norms[j] > largest ? norms[j] : largest;
  }
  return largest;
}

constexpr int ROWS = PFGM_LANES == 16 ? 12 : 6;  // data rows in a register tile of scores
// Terms in one running sum: a short sum rounds less, and is added to the rest more often.
PFGM_INLINE int64_t terms(int64_t N) { return N < 512 ? 64 : 128; }

// Where the next block of data lies: it is fetched into the second cache while this one is worked on, `stride` bytes a step.
struct Ahead {
  const char* at;
  int64_t stride;
};

// scores[j] (+)= sum over `depth` terms, for R rows of data; the first part starts from norms.
template <bool products, bool first, int R, class T>
PFGM_INLINE void score_rows(const T* panel, const T* y, int64_t ld, int64_t depth, const T* norms, T* scores, Ahead ahead) {
  Vec<T> acc[R][GROUPS];
  for (int j = 0; j < R; ++j)
    for (int v = 0; v < GROUPS; ++v) acc[j][v] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k, ahead.at += ahead.stride) {
    __builtin_prefetch(ahead.at, 0, 2);
    Vec<T> x[GROUPS];
    for (int v = 0; v < GROUPS; ++v) x[v] = load(panel + k * QW<T> + v * Types<T>::W);
#pragma GCC unroll 12
    for (int j = 0; j < R; ++j) {
      const T value = y[j * ld + k];
#pragma GCC unroll 2
      for (int v = 0; v < GROUPS; ++v) {
        if constexpr (products) acc[j][v] += x[v] * value;
        else {
          const Vec<T> d = x[v] - value;
          acc[j][v] += d * d;
        }
      }
    }
  }
  for (int j = 0; j < R; ++j)
    for (int v = 0; v < GROUPS; ++v) {
      T* s = scores + j * QW<T> + v * Types<T>::W;
      if constexpr (!first) store(s, load(s) + acc[j][v]);
      else if constexpr (products) store(s, norms[j] + acc[j][v]);
      else store(s, acc[j][v]);
    }
}

template <bool products, bool first, class T>
void score_depth(const T* panel, const T* y, int64_t ld, int64_t rows, int64_t depth, const T* norms, T* scores, Ahead& ahead) {
  int64_t j = 0;
  for (; j + ROWS <= rows; j += ROWS, ahead.at += depth * ahead.stride)
    score_rows<products, first, ROWS>(panel, y + j * ld, ld, depth, norms + j, scores + j * QW<T>, ahead);
  for (; j < rows; ++j) score_rows<products, first, 1>(panel, y + j * ld, ld, depth, norms + j, scores + j * QW<T>, ahead);
}

// scores (rows, QW) = |y|^2 - 2 x.y from a panel of -2 x, or |x - y|^2.
template <bool products, class T>
void score_block(const T* panel, const T* y, int64_t ld, int64_t rows, int64_t N, const T* norms, T* scores, Ahead& ahead) {
  for (int64_t k = 0; k < N; k += terms(N)) {
    const int64_t depth = N - k < terms(N) ? N - k : terms(N);
    if (k) score_depth<products, false>(panel + k * QW<T>, y + k, ld, rows, depth, norms, scores, ahead);
    else score_depth<products, true>(panel, y, ld, rows, depth, norms, scores, ahead);
  }
}

// Rounding of |y|^2 - 2 x.y in units of its terms: 4.5 standard deviations, measured on data that lie close to the query.
inline double usual_error(double N) {
  const double depth = std::fmin(N, double(terms(int64_t(N)))), count = N / depth;
  return 4.5 * (0.16 * std::sqrt(depth / count) + 0.1 * std::sqrt(count));
}

// The same for each query of a tile. Where many of its coordinates have one magnitude (a flat image), or few outweigh the rest,
// the roundings of a sum all go one way. Products of the query with multiples of itself show it; the multiples lie a fraction of
// the last bit of a sum apart, since a single one may round to nothing.
template <class T> void product_errors(const T* panel, int64_t N, const double* norm, Softmax<T>& st) {
  constexpr int W = Types<T>::W, MULTIPLES = 4;
  const double usual = usual_error(double(N)), bound = double(terms(N) + N / terms(N) + 2), unit = Types<T>::half_epsilon;
  const double step = 0.4 * unit * double(N < terms(N) ? N : terms(N));
  for (int at = 0; at < QW<T>; at += W) {
    Vec<T> total[MULTIPLES] = {};
    for (int64_t k = 0; k < N;) {
      Vec<T> some[MULTIPLES] = {};
      for (const int64_t end = N - k < terms(N) ? N : k + terms(N); k < end; ++k) {
        const Vec<T> x = load(panel + k * QW<T> + at);
        for (int m = 0; m < MULTIPLES; ++m) some[m] += x * (x * T(1 + m * step));
      }
      for (int m = 0; m < MULTIPLES; ++m) total[m] += some[m];
    }
    for (int q = at; q < at + W; ++q) {
      double lost = 0;
      for (int m = 0; m < MULTIPLES; ++m) lost = std::fmax(lost, std::fabs(double(total[m][q - at]) / (4 * norm[q] * (1 + m * step)) - 1));
      lost /= unit;
      st.error[q] = unit * (lost > usual ? std::fmin(3 * lost, bound) : usual);
    }
  }
}

template <class T> constexpr int QUERIES = PFGM_LANES == 16 ? 8 : Types<T>::W < 4 ? Types<T>::W : 4;  // in a register tile of sums

// sums (QUERIES, V vectors) += weights (count, QW) times the picked rows.
template <int V, class T>
PFGM_INLINE void sum_rows(const T* weights, const int32_t* pick, int count, const T* y, int64_t ld, T* sums, Ahead& ahead) {
  Vec<T> acc[QUERIES<T>][V];
  for (int q = 0; q < QUERIES<T>; ++q)
    for (int v = 0; v < V; ++v) acc[q][v] = Vec<T>{};
  for (int i = 0; i < count; ++i, ahead.at += ahead.stride) {
    __builtin_prefetch(ahead.at, 0, 2);
    const T* row = y + pick[i] * ld;
    const T* w = weights + int64_t(i) * QW<T>;
    Vec<T> values[V];
    for (int v = 0; v < V; ++v) values[v] = load(row + v * Types<T>::W);
#pragma GCC unroll 8
    for (int q = 0; q < QUERIES<T>; ++q) {
      const T one = w[q];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[q][v] += values[v] * one;
    }
  }
  for (int q = 0; q < QUERIES<T>; ++q)
    for (int v = 0; v < V; ++v) {
      T* s = sums + (q * V + v) * Types<T>::W;
      store(s, load(s) + acc[q][v]);
    }
}

// The sums of a group of lanes lie strip by strip: some columns of all its lanes, then the next columns. A strip of V vectors that
// starts at `column` is a (W, V W) matrix at column * W.
template <class T, class Visit> PFGM_INLINE void for_strips(int64_t ld, Visit visit) {
  constexpr int W = Types<T>::W, V = PFGM_LANES == 4 ? 2 : 3;
  int64_t n = 0;
  for (; n + V * W <= ld && ld - n != (V + 1) * W; n += V * W) visit(n, std::integral_constant<int, V>{});
  for (; n + 2 * W <= ld; n += 2 * W) visit(n, std::integral_constant<int, 2>{});
  for (; n < ld; n += W) visit(n, std::integral_constant<int, 1>{});
}

// Adds the picked rows of a block to the sums of one group of lanes.
template <class T> void sum_block(const T* weights, const int32_t* pick, int count, const T* y, int64_t ld, T* sums, Ahead& ahead) {
  constexpr int W = Types<T>::W;
  for_strips<T>(ld, [&](int64_t n, auto vectors) {
    for (int q = 0; q < W; q += QUERIES<T>) sum_rows<vectors()>(weights + q, pick, count, y + n, ld, sums + (n + q * vectors()) * W, ahead);
  });
}

// Multiplies the sums of lane q of a group.
template <class T> void scale_sums(T* sums, int64_t ld, int q, T factor) {
  constexpr int W = Types<T>::W;
  for_strips<T>(ld, [&](int64_t n, auto vectors) {
    for (T *s = sums + (n + q * vectors()) * W, *end = s + vectors() * W; s < end; s += W) store(s, load(s) * factor);
  });
}

// Copies the sums of lane q of a group to a row.
template <class T> void copy_sums(const T* sums, int64_t ld, int q, T* row) {
  constexpr int W = Types<T>::W;
  for_strips<T>(ld, [&](int64_t n, auto vectors) {
    for (int v = 0; v < vectors(); ++v) store(row + n + v * W, load(sums + (n + q * vectors() + v) * W));
  });
}

}  // namespace
