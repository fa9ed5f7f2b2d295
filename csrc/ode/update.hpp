// What a fixed-step solver does to its rows: linear combinations, and the rows that stop being finite (pfgm_fast/update.py).
#pragma once
#include <cstdint>
#include <vector>

namespace pfgm::ode {

// a x + the sum of factor times term, in this order, every product and sum rounded; x and the terms are (B, n).
template <class T>
struct Combination {
  int64_t B, n;
  const T* x;
  T a;
  std::vector<T> factors;
  std::vector<const T*> terms;
  int threads;
};

// out (B, n) becomes the combination, with zeros in the rows where that is not finite; these end if they were running.
template <class T> void attempt(const Combination<T>& c, T* out, int8_t* status);

// In the rows that run and stay finite the state becomes the combination, t becomes t_next and accepted grows by count.
template <class T> void advance(const Combination<T>& c, T* x, double* t, int64_t* accepted, int8_t* status, double t_next, int64_t count);

}  // namespace pfgm::ode
