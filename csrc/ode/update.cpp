#include "ode/update.hpp"

#include <algorithm>
#include <type_traits>

#include "ode/step.hpp"

namespace pfgm::ode {

namespace {

constexpr int64_t BLOCK = 1024;                  // elements that stay in the first cache
constexpr int64_t WORTH_THREADS = int64_t(1) << 15;  // elements, below which a second thread takes longer to start than it saves

template <class T> using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Writes the combination of a row and tells whether all of it is finite.
template <class T> bool combine(const Combination<T>& c, int64_t row, T* out) {
  const int64_t start = row * c.n;
  bool finite = true;
  for (int64_t first = 0; first < c.n; first += BLOCK) {
    const int64_t size = std::min(BLOCK, c.n - first);
    const T* x = c.x + start + first;
    T block[BLOCK];
    if (c.a == 1)
      for (int64_t i = 0; i < size; ++i) block[i] = x[i];
    else
      for (int64_t i = 0; i < size; ++i) block[i] = c.a * x[i];
    for (size_t j = 0; j < c.terms.size(); ++j) {
      const T factor = c.factors[j];
      const T* term = c.terms[j] + start + first;
      for (int64_t i = 0; i < size; ++i) block[i] = block[i] + factor * term[i];
    }
    Integer<T> bad = 0;
    for (int64_t i = 0; i < size; ++i) bad |= Integer<T>(block[i] * 0 != 0);
    finite &= !bad;
    std::copy(block, block + size, out + first);
  }
  return finite;
}

template <class T, class Work> void each_row(const Combination<T>& c, const Work& work) {
  if (c.threads == 1 || c.B * c.n < WORTH_THREADS) {
    for (int64_t row = 0; row < c.B; ++row) work(row);
    return;
  }
#pragma omp parallel for num_threads(c.threads) schedule(static)
  for (int64_t row = 0; row < c.B; ++row) work(row);
}

bool runs(int8_t status) { return status == int8_t(Status::stopped); }

}  // namespace

template <class T> void attempt(const Combination<T>& c, T* out, int8_t* status) {
  each_row(c, [&](int64_t row) {
    T* const mine = out + row * c.n;
    if (combine(c, row, mine)) return;
    std::fill(mine, mine + c.n, T(0));
    if (runs(status[row])) status[row] = int8_t(Status::nonfinite);
  });
}

template <class T> void advance(const Combination<T>& c, T* x, double* t, int64_t* accepted, int8_t* status, double t_next, int64_t count) {
  each_row(c, [&](int64_t row) {
    if (!runs(status[row])) return;
    static thread_local std::vector<T> fresh;
    fresh.resize(c.n);
    if (combine(c, row, fresh.data())) {
      std::copy(fresh.begin(), fresh.end(), x + row * c.n);
      t[row] = t_next;
      accepted[row] += count;
    } else {
      status[row] = int8_t(Status::nonfinite);
    }
  });
}

template void attempt(const Combination<float>&, float*, int8_t*);
template void attempt(const Combination<double>&, double*, int8_t*);
template void advance(const Combination<float>&, float*, double*, int64_t*, int8_t*, double, int64_t);
template void advance(const Combination<double>&, double*, double*, int64_t*, int8_t*, double, int64_t);

}  // namespace pfgm::ode
