#include "ode/field.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

namespace pfgm::ode {

namespace {

// The evaluations of one call, with what they need; C is the type that the field computes in.
template <class T, class C>
class Evaluation {
 public:
  Evaluation(Slots<T>& slots, const Field& field)
      : slots_(slots), field_(field), t_first_(std::log(field.first)), t_last_(std::log(field.last)) {
    const size_t count = size_t(slots.busy()), size = count * size_t(slots.size_of_row());
    state_.resize(size);
    mean_.resize(size);
    if (!std::is_same_v<T, C>) query_.resize(size);
    for (std::vector<double>* values : {&time_, &scale_, &log_sum_}) values->resize(count);
    rows_.resize(count);
    if (field.segments) segments_.resize(2 * count);
    gather();
  }

  // Whether it was not interrupted.
  bool run() {
    const int64_t count = slots_.busy(), n = slots_.size_of_row();
    slots_.stage_in(state_.data(), time_.data());
    for (int64_t i = 0; i < count; ++i) scale_[size_t(i)] = scale(time_[size_t(i)]);
    const C* query = query_.data();
    if constexpr (std::is_same_v<T, C>) query = state_.data();
    else std::copy(state_.begin(), state_.begin() + count * n, query_.begin());
    const Problem problem{count, field_.M, n, query, scale_.data(), field_.data, field_.element, field_.center, field_.log_weights,
                          field_.segments ? segments_.data() : nullptr, (double(n) + field_.D) / 2, mean_.data(), log_sum_.data(),
                          slots_.threads(), field_.interrupted};
    if constexpr (std::is_same_v<C, float>) posterior_float(problem);
    else posterior_double(problem);
    if (field_.interrupted && field_.interrupted()) return false;
    for (int64_t i = 0; i < count * n; ++i) state_[size_t(i)] -= T(mean_[size_t(i)]);
    if (slots_.stage_out(state_.data())) gather();
    return true;
  }

 private:
  // D sigma^2 or 2 sigma^2; sigma, as a denoiser is given it, is of the state's type.
  double scale(double t) const {
    const double low = std::min(field_.first, field_.last), high = std::max(field_.first, field_.last);
    double sigma = std::min(std::max(std::exp(t), low), high);
    if (t == t_first_) sigma = field_.first;
    if (t == t_last_) sigma = field_.last;
    const double level = double(T(sigma));
    return (std::isinf(field_.D) ? 2 : field_.D) * (level * level);
  }

  void gather() {
    if (!field_.segments) return;
    slots_.rows(rows_.data());
    for (size_t i = 0; i < size_t(slots_.busy()); ++i) std::copy_n(field_.segments + 2 * rows_[i], 2, segments_.begin() + int64_t(2 * i));
  }

  Slots<T>& slots_;
  const Field& field_;
  double t_first_, t_last_;
  std::vector<T> state_;
  std::vector<C> query_, mean_;
  std::vector<double> time_, scale_, log_sum_;
  std::vector<int64_t> rows_, segments_;
};

template <class T, class C> bool solve_in(Slots<T>& slots, const Field& field, int64_t evaluations) {
  Evaluation<T, C> evaluation(slots, field);
  while (slots.busy() && evaluations-- > 0)
    if (!evaluation.run()) break;
  return slots.busy() > 0;
}

}  // namespace

template <> bool solve(Slots<float>& slots, const Field& field, int64_t evaluations) {
  return field.element == Element::f64 ? solve_in<float, double>(slots, field, evaluations) : solve_in<float, float>(slots, field, evaluations);
}

template <> bool solve(Slots<double>& slots, const Field& field, int64_t evaluations) {
  return solve_in<double, double>(slots, field, evaluations);
}

}  // namespace pfgm::ode
