// The solvers: whole adaptive solves with the field, the slots with slopes that come from elsewhere, the fixed-step updates.
#include <algorithm>
#include <limits>
#include <memory>

#include "cases.hpp"
#include "ode/field.hpp"
#include "ode/update.hpp"

using pfgm::Element;
using pfgm::ode::Status;

namespace {

constexpr pfgm::ode::Tolerance TOLERANCE{1e-3, 1e-3, 0.9, 0.2, 10, 10000};

template <class T> struct Rows {
  int64_t B, n;
  std::vector<T> x;
  std::vector<double> t, end;
  std::vector<int8_t> status;
  std::vector<int64_t> nfe, accepted, rejected;

  Rows(int64_t B_, int64_t n_, double first, double last, double size)
      : B(B_), n(n_), t(size_t(B_), first), end(size_t(B_), last), status(size_t(B_), int8_t(Status::stopped)), nfe(size_t(B_)),
        accepted(size_t(B_)), rejected(size_t(B_)) {
    Numbers numbers(3);
    for (int64_t i = 0; i < B * n; ++i) x.push_back(T(size * numbers.spread()));
  }

  // With half as many slots as rows: the others wait in the queue.
  pfgm::ode::Slots<T> slots() {
    return {{x.data(), t.data(), status.data(), nfe.data(), accepted.data(), rejected.data(), end.data(), B, n}, B / 2, TOLERANCE, 1};
  }

  bool solved() const {
    return all_finite(x) && std::all_of(status.begin(), status.end(), [](int8_t s) { return s == int8_t(Status::success); });
  }
};

// Rounding must not decide how many steps there are: powers for which weights come from an estimate of the processor are left out.
template <class T> Job solve(int64_t B, int64_t M, int64_t N, double D, Element element, bool labels) {
  constexpr double FIRST = 20, LAST = 0.05;
  const auto data = std::make_shared<DataSet>(M, N, element);
  const auto rows = std::make_shared<Rows<T>>(B, N, std::log(FIRST), std::log(LAST), FIRST);
  const auto segments = std::make_shared<std::vector<int64_t>>(data->segments(B));
  const pfgm::ode::Field field{M, data->address(), element, data->center.data(), nullptr, labels ? segments->data() : nullptr,
                               D, FIRST, LAST, nullptr};
  const auto work = [=] {
    auto slots = rows->slots();
    pfgm::ode::solve(slots, field, std::numeric_limits<int64_t>::max());
    (void)data, (void)segments;
  };
  return {work, [rows] { return rows->solved(); }};
}

// dx/dt = -x; in every iteration the slopes of the rows that start a step are read and written back, as after an edit of the state.
template <class T> Job slots(int64_t B, int64_t n) {
  const auto rows = std::make_shared<Rows<T>>(B, n, 0, 2, 1);
  const auto work = [rows, n] {
    auto slots = rows->slots();
    const auto size = size_t(slots.busy());
    std::vector<T> state(size * size_t(n)), slope(size * size_t(n));
    std::vector<double> t(size);
    std::vector<int64_t> starting(size);
    while (slots.busy()) {
      slots.stage_in(state.data(), t.data());
      for (T& v : state) v = -v;
      slots.stage_out(state.data());
      if (slots.starting(starting.data(), slope.data())) slots.restart(slope.data());
    }
  };
  return {work, [rows] { return rows->solved(); }};
}

// Both half steps, with as many terms as a multistep method has; the state of one row stops being finite.
template <class T> Job update(int64_t B, int64_t n, double a) {
  struct State {
    Rows<T> rows;
    std::vector<T> term[3], out;
  };
  const auto s = std::make_shared<State>(State{Rows<T>(B, n, 1, 0, 1), {}, {}});
  Numbers numbers(4);
  for (std::vector<T>& term : s->term)
    for (int64_t i = 0; i < B * n; ++i) term.push_back(T(numbers.spread()));
  s->term[1][size_t(n)] = std::numeric_limits<T>::infinity();
  s->out.resize(s->rows.x.size());
  const auto work = [s, B, n, a] {
    const pfgm::ode::Combination<T> c{B, n, s->rows.x.data(), T(a), {T(0.5), T(-0.25), T(0.125)},
                                      {s->term[0].data(), s->term[1].data(), s->term[2].data()}, 1};
    Rows<T>& rows = s->rows;
    pfgm::ode::attempt(c, s->out.data(), rows.status.data());
    pfgm::ode::advance(c, rows.x.data(), rows.t.data(), rows.accepted.data(), rows.status.data(), 0.5, 1);
  };
  const auto right = [s, B] {
    const std::vector<int64_t>& steps = s->rows.accepted;
    return all_finite(s->out) && std::count(steps.begin(), steps.end(), 1) == B - 1;
  };
  return {work, right};
}

}  // namespace

std::vector<Case> ode_cases() {
  return {
      {"solve-N2-D16", true, [] { return solve<float>(32, 256, 2, 16, Element::f32, false); }},
      {"solve-N3-Dinf-double", true, [] { return solve<double>(32, 128, 3, INFINITY, Element::f64, false); }},
      {"solve-N20-D4-mixed", true, [] { return solve<float>(16, 64, 20, 4, Element::f64, false); }},  // float32 states, float64 data
      {"solve-N64-D128-labels", true, [] { return solve<float>(16, 64, 64, 128, Element::f32, true); }},
      {"slots-N3-double", false, [] { return slots<double>(1024, 3); }},
      {"slots-N1000", false, [] { return slots<float>(16, 1000); }},
      {"update-N2-double", false, [] { return update<double>(8192, 2, 1); }},
      {"update-N3072", false, [] { return update<float>(64, 3072, 0.9); }},
  };
}
