// The loops over the elements of a row, and what a slot does with them.
#include "ode/slots.hpp"

#include <algorithm>
#include <limits>
#include <type_traits>

namespace pfgm::ode {

namespace {

// Elements, and for each slot as many as take the time of its step: with less, starting the threads takes longer than the work.
constexpr int64_t kWorthThreads = 1 << 16, kStepElements = 16;

// The size n of a row is an int64_t, or for the smallest rows a constant, whose loops unroll.
template <int64_t n> using Constant = std::integral_constant<int64_t, n>;

// How far the slopes of a row lie apart: not by whole pages, or they would fight for the same lines of the cache.
inline int64_t stride_of(int64_t n) { return n < 256 ? n : (n + 15) / 16 * 16 + 16; }
template <int64_t n> constexpr Constant<n> stride_of(Constant<n> size) { return size; }

// As wide as T, so that a loop may hold both in vectors.
template <class T> using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T> Bits<T> unbounded(T v) { return std::fabs(v) <= std::numeric_limits<T>::max() ? 0 : 1; }

// Writes value(i) to x; whether all are finite.
template <class T, class N, class Value> bool fill(T* x, N n, Value value) {
  Bits<T> bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) {
    const T v = value(i);
    x[i] = v;
    bad |= unbounded(v);
  }
  return !bad;
}

template <class Value> bool all_finite(int64_t n, Value value) {
  for (int64_t i = 0; i < n; ++i)
    if (unbounded(value(i))) return false;
  return true;
}

// Sum of squares of value(0), ..., value(n - 1), in the tree of step.hpp.
template <class N, class Value> double squares(N n, Value value) {
  double lane[kMostLanes];
  int lanes = lanes_of(n);
  for (int l = 0; l < lanes; ++l) lane[l] = 0;
  for (int64_t first = 0; first < n; first += lanes) {
    const int count = int(std::min<int64_t>(lanes, n - first));
#pragma omp simd
    for (int l = 0; l < count; ++l) {
      const double v = value(first + l);
      lane[l] += v * v;
    }
  }
  while (lanes > 1) {
    lanes /= 2;
#pragma omp simd
    for (int l = 0; l < lanes; ++l) lane[l] += lane[l + lanes];
  }
  return lane[0];
}

template <class T, class N> bool state_of_stage(const Row& row, const T* y, const T* k, N stride, N n, T* x) {
  const T h = row.stage == kStart ? T(0) : T(step_of_stage(row));
  switch (row.stage) {
    case kStart: return fill(x, n, [=](int64_t i) { return y[i]; });
    case kProbe: return fill(x, n, [=](int64_t i) { return y[i] + h * k[i]; });
    case 1: return fill(x, n, [=](int64_t i) { return state<1>(y[i], h, k + i, stride); });
    case 2: return fill(x, n, [=](int64_t i) { return state<2>(y[i], h, k + i, stride); });
    case 3: return fill(x, n, [=](int64_t i) { return state<3>(y[i], h, k + i, stride); });
    case 4: return fill(x, n, [=](int64_t i) { return state<4>(y[i], h, k + i, stride); });
    case 5: return fill(x, n, [=](int64_t i) { return state<5>(y[i], h, k + i, stride); });
    default: return fill(x, n, [=](int64_t i) { return state<6>(y[i], h, k + i, stride); });
  }
}

}  // namespace

template <class T>
Slots<T>::Slots(const Record<T>& record, int64_t slots, const Tolerance& tolerance, int threads)
    : record_(record), tolerance_(tolerance), threads_(threads) {
  slots = std::min(slots, record.B);
  const int64_t size = kSlopes * stride_of(record.n);
  slopes_.resize(size_t(slots * size));
  for (int64_t i = 0; i < record.B; ++i)
    if (record.t[i] == record.end[i]) record.status[i] = int8_t(Status::success);
  for (int64_t i = 0; i < slots; ++i) {
    Slot slot{};
    slot.k = slopes_.data() + i * size;
    if (!load(slot)) break;
    slots_.push_back(slot);
  }
  attempted_.reserve(slots_.size());
}

// The next row of the queue; whether there was one.
template <class T> bool Slots<T>::load(Slot& slot) {
  while (next_ < record_.B && record_.t[next_] == record_.end[next_]) ++next_;
  if (next_ == record_.B) return false;
  const double t = record_.t[next_];
  slot.row = Row{t, record_.end[next_], 0, t, 0, t, 0, 0, kStart, false};
  slot.index = next_++;
  slot.left = false;
  return true;
}

template <class T> void Slots<T>::rows(int64_t* out) const {
  for (const Slot& slot : slots_) *out++ = slot.index;
}

template <class T> template <class Work> void Slots<T>::each(const Work& work) {
  const int64_t count = busy();
  const bool shared = threads_ > 1 && count * (record_.n + kStepElements) >= kWorthThreads;
  const auto run = [&](auto n) {
    if (!shared) {
      for (int64_t i = 0; i < count; ++i) work(slots_[size_t(i)], i, n);
      return;
    }
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int64_t i = 0; i < count; ++i) work(slots_[size_t(i)], i, n);
  };
  switch (record_.n) {
    case 1: return run(Constant<1>());
    case 2: return run(Constant<2>());
    case 3: return run(Constant<3>());
    default: return run(record_.n);
  }
}

template <class T> void Slots<T>::stage_in(T* x, double* t) {
  each([this, x, t](Slot& slot, int64_t i, auto n) { ask(slot, n, x + i * n, t + i); });
}

template <class T> template <class N> void Slots<T>::ask(Slot& slot, N n, T* x, double* t) {
  *t = time_of_stage(slot.row);
  slot.finite = state_of_stage(slot.row, record_.x + slot.index * n, slot.k, stride_of(n), n, x);
  if (!slot.finite) std::fill(x, x + n, T(0));
  ++record_.nfe[slot.index];
}

template <class T> bool Slots<T>::stage_out(const T* slope) {
  each([this, slope](Slot& slot, int64_t i, auto n) { answer(slot, n, slope + i * n); });
  attempted_.clear();
  bool left = false;
  for (const Slot& slot : slots_) {
    if (slot.ended) attempted_.push_back(slot.index);
    left |= slot.left;
  }
  if (left) slots_.erase(std::remove_if(slots_.begin(), slots_.end(), [this](Slot& s) { return s.left && !load(s); }), slots_.end());
  return left;
}

template <class T> template <class N> void Slots<T>::answer(Slot& slot, N n, const T* f) {
  const auto stride = stride_of(n);
  const T *y = record_.x + slot.index * n, rtol = T(tolerance_.rtol), atol = T(tolerance_.atol);
  T* const k = slot.k;
  Row& row = slot.row;
  slot.ended = false;
  // A finite sum of squares has seen nothing else; one that is not may have overflowed.
  const auto good = [&](double sum) { return slot.finite && (std::isfinite(sum) || all_finite(n, [=](int64_t i) { return f[i]; })); };
  if (row.stage == kStart) {
    const double sum = squares(n, [=](int64_t i) { return scaled(f[i], std::fabs(y[i]), rtol, atol); });
    if (!good(sum)) {
      record_.status[slot.index] = int8_t(Status::nonfinite);
      slot.left = true;
      return;
    }
    const double size = squares(n, [=](int64_t i) { return scaled(y[i], std::fabs(y[i]), rtol, atol); });
    std::copy(f, f + n, k);
    begin_probe(row, rms(size, n), rms(sum, n));
  } else if (row.stage == kProbe) {
    const double sum = squares(n, [=](int64_t i) { return scaled(f[i] - k[i], std::fabs(y[i]), rtol, atol); });
    end_probe(row, rms(sum, n), good(sum));
  } else if (row.stage < kLast) {
    T* const kept = k + row.stage * stride;
    if (slot.finite) std::copy(f, f + n, kept);
    else std::fill(kept, kept + n, std::numeric_limits<T>::quiet_NaN());
    ++row.stage;
  } else {
    const T h = T(step_of_stage(row));
    T* const y_new = k + stride;  // the second slope has no weight in what follows
    const auto error = [=](int64_t i, T rtol, T atol) { return scaled_error(y[i], y_new[i], h, k + i, stride, f[i], rtol, atol); };
    const double sum = squares(n, [=](int64_t i) {
      y_new[i] = state<kLast>(y[i], h, k + i, stride);
      return error(i, rtol, atol);
    });
    judge(slot, n, rms(sum, n), good(sum) && (std::isfinite(sum) || all_finite(n, [=](int64_t i) { return error(i, 0, 1); })), f);
  }
}

template <class T> template <class N> void Slots<T>::judge(Slot& slot, N n, double norm, bool finite, const T* f) {
  const int64_t i = slot.index;
  const Outcome outcome = end_attempt(slot.row, norm, finite, tolerance_);
  slot.ended = true;
  ++(outcome.accepted ? record_.accepted : record_.rejected)[i];
  if (outcome.accepted) {
    const T* y_new = slot.k + stride_of(n);
    std::copy(y_new, y_new + n, record_.x + i * n);
    std::copy(f, f + n, slot.k);
    record_.t[i] = slot.row.t;
  }
  if (outcome.status != Status::stopped) {
    record_.status[i] = int8_t(outcome.status);
    slot.left = true;
  }
}

template <class T> int64_t Slots<T>::starting(int64_t* rows, T* slope) const {
  int64_t count = 0;
  for (const Slot& slot : slots_) {
    if (slot.row.stage != kFirst) continue;
    rows[count] = slot.index;
    std::copy(slot.k, slot.k + record_.n, slope + count++ * record_.n);
  }
  return count;
}

template <class T> void Slots<T>::restart(const T* slope) {
  for (Slot& slot : slots_) {
    if (slot.row.stage != kFirst) continue;
    std::copy(slope, slope + record_.n, slot.k);
    slope += record_.n;
  }
}

template class Slots<float>;
template class Slots<double>;

}  // namespace pfgm::ode
