// Vectors of the instruction set this file is compiled for, and the few elementary functions of the field.
#pragma once
#include <cstdint>
#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

template <class T>
struct Types;

#if defined(__GNUC__)
#define PFGM_VECTOR(type, bytes) type __attribute__((vector_size(bytes)))
#define PFGM_LOOSE(type, bytes) type __attribute__((vector_size(bytes), aligned(alignof(type)), may_alias))
#define PFGM_INLINE static inline __attribute__((always_inline))
#endif

constexpr int BYTES = 4 * PFGM_LANES;

template <>
struct Types<float> {
  static constexpr int W = PFGM_LANES;
  typedef PFGM_VECTOR(float, BYTES) vec;
  typedef PFGM_VECTOR(int32_t, BYTES) ivec;
  typedef PFGM_VECTOR(uint32_t, BYTES) bits;
  typedef PFGM_LOOSE(float, BYTES) loose;
  typedef PFGM_VECTOR(double, 2 * BYTES) wide;
  typedef uint32_t integer;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float half_epsilon = 0x1p-24f, magic = 0x1.8p23f, huge = 3e38f, safe = 1e30f, least_exponent = -125.5f;
  static constexpr integer sqrt_half = 0x3f3504f3, magic_bits = 0x4b400000;
};
template <>
struct Types<double> {
  static constexpr int W = PFGM_LANES / 2;
  typedef PFGM_VECTOR(double, BYTES) vec;
  typedef PFGM_VECTOR(int64_t, BYTES) ivec;
  typedef PFGM_VECTOR(uint64_t, BYTES) bits;
  typedef PFGM_LOOSE(double, BYTES) loose;
  typedef vec wide;
  typedef uint64_t integer;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double half_epsilon = 0x1p-53, magic = 0x1.8p52, huge = 1e308, safe = 1e280, least_exponent = -1021.5;
  static constexpr integer sqrt_half = 0x3fe6a09e667f3bcdLL, magic_bits = 0x4338000000000000LL;
};

template <class T> using Vec = typename Types<T>::vec;
template <class T> using IVec = typename Types<T>::ivec;
template <class T> using Bits = typename Types<T>::bits;  // arithmetic that may wrap, in lanes whose result is thrown away

template <class T> PFGM_INLINE Vec<T> load(const T* p) { return (Vec<T>)*(const typename Types<T>::loose*)p; }
template <class T> PFGM_INLINE void store(T* p, Vec<T> v) { *(typename Types<T>::loose*)p = (typename Types<T>::loose)v; }
template <class T> PFGM_INLINE Vec<T> broadcast(T x) { return x - Vec<T>{}; }
template <class V> PFGM_INLINE V least(V a, V b) { return a < b ? a : b; }
template <class V> PFGM_INLINE V greatest(V a, V b) { return a > b ? a : b; }

// Bit i tells whether a[i] <= b[i].
PFGM_INLINE unsigned at_most(Vec<float> a, Vec<float> b) {
#if PFGM_LANES == 16
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
#elif PFGM_LANES == 8
  return unsigned(_mm256_movemask_ps((__m256)(a <= b)));
#else
  unsigned bits = 0;
  for (int i = 0; i < Types<float>::W; ++i) bits |= unsigned(a[i] <= b[i]) << i;
  return bits;
#endif
}
PFGM_INLINE unsigned at_most(Vec<double> a, Vec<double> b) {
#if PFGM_LANES == 16
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LE_OQ);
#elif PFGM_LANES == 8
  return unsigned(_mm256_movemask_pd((__m256d)(a <= b)));
#else
  unsigned bits = 0;
  for (int i = 0; i < Types<double>::W; ++i) bits |= unsigned(a[i] <= b[i]) << i;
  return bits;
#endif
}

template <class T> PFGM_INLINE T sum_of_lanes(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < Types<T>::W; ++i) total += v[i];
  return total;
}

// ln of m in [sqrt(1/2), sqrt(2)) given f = m - 1, up to the last bits of T.
PFGM_INLINE Vec<float> log_mantissa(Vec<float> f) {
  Vec<float> p = broadcast(6.9153680627e-2f);  // minimax, as the others here
  p = p * f - 1.1789807693e-1f; p = p * f + 1.1872976294e-1f; p = p * f - 1.2384348471e-1f;
  p = p * f + 1.4218658090e-1f; p = p * f - 1.6669250816e-1f; p = p * f + 2.0002226614e-1f;
  p = p * f - 2.4999986600e-1f; p = p * f + 3.3333310440e-1f;
  const Vec<float> square = f * f;
  return f + square * (f * p - 0.5f);
}
PFGM_INLINE Vec<double> log_mantissa(Vec<double> f) {  // 2 artanh(f / (2 + f))
  const Vec<double> s = f / (f + 2.0), q = s * s;
  Vec<double> p = broadcast(1.0 / 23);
  for (int odd = 21; odd >= 3; odd -= 2) p = p * q + 1.0 / odd;
  return 2.0 * (s + s * (q * p));
}

// 2^r for r in [-1/2, 1/2].
PFGM_INLINE Vec<float> exp2_fraction(Vec<float> r) {
  Vec<float> p = broadcast(1.547589818427219e-4f);
  p = p * r + 1.340028310994112e-3f; p = p * r + 9.618005409662787e-3f; p = p * r + 5.550327742601772e-2f;
  p = p * r + 2.402265133244984e-1f; p = p * r + 6.931472062883379e-1f;
  return p * r + 1.0f;
}
PFGM_INLINE Vec<double> exp2_fraction(Vec<double> r) {
  const Vec<double> x = r * 0x1.62e42fefa39efp-1;
  Vec<double> p = broadcast(1.0);
  for (int n = 13; n >= 1; --n) p = p * x / double(n) + 1.0;
  return p;
}

// log2(1 + u), u > -1, relative to u near 0.
template <class T> PFGM_INLINE Vec<T> log2_1p(Vec<T> u) {
  using K = Types<T>;
  const Vec<T> x = u + T(1), lost = x < T(2) ? u - (x - T(1)) : Vec<T>{};  // what 1 + u rounds away
  const Bits<T> bits = (Bits<T>)x;
  const IVec<T> exponent = (IVec<T>)(bits - K::sqrt_half) >> K::mantissa;
  const Vec<T> m = (Vec<T>)(bits - ((Bits<T>)exponent << K::mantissa));
  return (log_mantissa(m - T(1)) + lost) * T(1.44269504088896341) + __builtin_convertvector(exponent, Vec<T>);
}

// 2^y for y <= 0, exactly 0 below the normal range.
template <class T> PFGM_INLINE Vec<T> exp2_of(Vec<T> y) {
  using K = Types<T>;
  const Vec<T> clamped = greatest(y, broadcast(K::least_exponent));
  const Vec<T> shifted = clamped + K::magic, r = clamped - (shifted - K::magic);
  const Bits<T> exponent = (Bits<T>)shifted - K::magic_bits;
  const Vec<T> power = (Vec<T>)((Bits<T>)exp2_fraction(r) + (exponent << K::mantissa));
  return y > K::least_exponent ? power : Vec<T>{};
}

// log2(1 + u) for 0 <= u <= 1/2: what is left of the heavy tail when the power is large.
PFGM_INLINE Vec<float> log2_1p_near(Vec<float> u) {
  Vec<float> p = broadcast(5.569335976e-2f);
  p = p * u - 1.639596961e-1f; p = p * u + 2.661904358e-1f; p = p * u - 3.571093433e-1f;
  p = p * u + 4.806197097e-1f; p = p * u - 7.213392416e-1f; p = p * u + 1.442695001e+0f;
  return p * u;
}

// An estimate of x^(-1/2), and from it x^(-1/2) and x^(-3/2) by the series of (1 - e)^(-1/2) and (1 - e)^(-3/2) in its error e.
PFGM_INLINE Vec<float> rsqrt_estimate(Vec<float> x) {
#if PFGM_LANES == 16
  return (Vec<float>)_mm512_rsqrt14_ps((__m512)x);
#elif PFGM_LANES == 8
  return (Vec<float>)_mm256_rsqrt_ps((__m256)x);
#else
  Vec<float> r;
  for (int i = 0; i < Types<float>::W; ++i) r[i] = 1.0f / __builtin_sqrtf(x[i]);
  return r;
#endif
}
PFGM_INLINE Vec<float> rsqrt(Vec<float> x) {
  const Vec<float> r = rsqrt_estimate(x), e = 1.0f - x * r * r;
  return r + r * (e * (0.5f + 0.375f * e));
}
PFGM_INLINE Vec<float> rsqrt_cubed(Vec<float> x) {
  const Vec<float> r = rsqrt_estimate(x), square = r * r, e = 1.0f - x * square, cube = square * r;
#if PFGM_LANES == 16
  return cube + cube * (e * 1.5f);  // |e| < 2^-13: the next term rounds away
#else
  return cube + cube * (e * (1.5f + 1.875f * e));
#endif
}

}  // namespace
