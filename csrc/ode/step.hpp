// One row's way through Dormand and Prince's method 5(4): the tableau, the error norm, the controller and what becomes of a step.
//
// The CPU's loop and the CUDA kernels both do a row's arithmetic with these functions; pfgm_fast/ode states the same in PyTorch.
// A row needs one slope at a time: its stage says where that is. Built with contraction off, so that a row has the same bits wherever
// the functions run, but for the last bit of pow.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define PFGM_HD __host__ __device__ __forceinline__
#else
#define PFGM_HD inline
#endif

namespace pfgm::ode {

// pfgm_fast.Status
enum class Status : int8_t { success = 0, max_steps = 1, step_underflow = 2, nonfinite = 3, stopped = 4 };

// The stages of a row: the slope where it starts, one more to find the length of its first step, then the six of every attempt.
constexpr int kStart = -2, kProbe = -1, kFirst = 1, kLast = 6;
constexpr int kSlopes = 6;             // slopes kept while an attempt is under way; the seventh is the last stage's
constexpr int kNonfiniteLimit = 6;     // a step still not finite after shrinking by 0.2^6 has met NaN or a pole, not a step too long
constexpr int kErrorOrder = 4;

PFGM_HD constexpr double node(int stage) {
  return stage == 1 ? 1. / 5 : stage == 2 ? 3. / 10 : stage == 3 ? 4. / 5 : stage == 4 ? 8. / 9 : 1.;
}

PFGM_HD constexpr double weight(int stage, int j) {
  constexpr double a[6][6] = {{1. / 5},
                              {3. / 40, 9. / 40},
                              {44. / 45, -56. / 15, 32. / 9},
                              {19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
                              {9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656},
                              {35. / 384, 0., 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84}};
  return a[stage - 1][j];
}

PFGM_HD constexpr double error_weight(int j) {
  constexpr double e[7] = {71. / 57600, 0., -71. / 16695, 71. / 1920, -17253. / 339200, 22. / 525, -1. / 40};
  return e[j];
}

struct Tolerance {
  double rtol, atol;
  double safety, min_factor, max_factor;
  int64_t max_steps;
};

// Where a row stands, beside its state and its slopes.
struct Row {
  double t, end;
  double h;         // >= 0, length of the next attempt; while the row probes, of the probe
  double t_new;     // end of the attempt under way
  double slope;     // norm of the slope where the row started
  double frontier;  // the nearest end of the steps that were not finite
  int64_t steps;    // attempts so far
  int32_t failures; // steps not finite since the row last got past the frontier
  int32_t stage;
  bool retried;     // whether the last attempt was rejected
};

PFGM_HD double direction(const Row& r) { return r.end > r.t ? 1. : -1.; }

// 10 units in the last place of t.
PFGM_HD double smallest_step(const Row& r) { return 10 * std::fabs(std::nextafter(r.t, r.end) - r.t); }

// t moved by h towards the end, and no further.
PFGM_HD double moved(const Row& r, double h) { return h >= std::fabs(r.end - r.t) ? r.end : r.t + h * direction(r); }

// Where the row's stage asks for the slope.
PFGM_HD double time_of_stage(const Row& r) {
  if (r.stage == kStart) return r.t;
  if (r.stage == kProbe) return moved(r, r.h);
  return node(r.stage) == 1 ? r.t_new : r.t + node(r.stage) * (r.t_new - r.t);
}

// The step that the state of this stage takes from y along its slopes.
PFGM_HD double step_of_stage(const Row& r) { return r.stage == kProbe ? r.h * direction(r) : r.t_new - r.t; }

// y + h * (sum of the weighted slopes k[0], k[stride], ...), from left to right.
template <int STAGE, class T>
PFGM_HD T state(T y, T h, const T* k, int64_t stride) {
  T sum = T(weight(STAGE, 0)) * k[0];
  for (int j = 1; j < STAGE; ++j)
    if (weight(STAGE, j) != 0) sum = sum + T(weight(STAGE, j)) * k[j * stride];
  return y + h * sum;
}

// value / (atol + rtol * magnitude), where a vanishing tolerance is the smallest normal number.
PFGM_HD float scaled(float value, float magnitude, float rtol, float atol) {
  const float unit = atol + rtol * magnitude;
  return value / (unit < FLT_MIN ? FLT_MIN : unit);
}
PFGM_HD double scaled(double value, double magnitude, double rtol, double atol) {
  const double unit = atol + rtol * magnitude;
  return value / (unit < DBL_MIN ? DBL_MIN : unit);
}

// Squares are summed in double, in one tree whoever sums them: element i joins lane i % lanes in order, then the lanes are halved,
// lane l taking lane l + lanes / 2.
constexpr int kMostLanes = 256;

PFGM_HD int lanes_of(int64_t n) {
  int lanes = 1;
  while (lanes < n && lanes < kMostLanes) lanes *= 2;
  return lanes;
}

// Root mean square of n elements from the sum of their squares.
PFGM_HD double rms(double sum, int64_t n) { return n > 0 ? std::sqrt(sum / double(n)) : 0; }

// The error of the step in units of the tolerance, for one element; `last` is the slope at the step's end.
template <class T>
PFGM_HD T scaled_error(T y, T y_new, T h, const T* k, int64_t stride, T last, T rtol, T atol) {
  T sum = T(error_weight(0)) * k[0];
  for (int j = 2; j < kSlopes; ++j) sum = sum + T(error_weight(j)) * k[j * stride];
  sum = sum + T(error_weight(6)) * last;
  const T before = std::fabs(y), after = std::fabs(y_new);
  return scaled(h * sum, before > after ? before : after, rtol, atol);
}

// The first length to try, before and after the probe (Hairer, Norsett, Wanner, section II.4). The norms are root mean squares of
// the state, of the slope, and of the slope's change over the probe, in units of the tolerance.
PFGM_HD void begin_probe(Row& r, double state_norm, double slope_norm) {
  const double length = std::fabs(r.end - r.t);
  const double h = state_norm < 1e-5 || slope_norm < 1e-5 ? 1e-6 : 0.01 * state_norm / slope_norm;
  r.slope = slope_norm;
  r.h = h < length ? h : length;
  r.stage = kProbe;
}

// The attempt that the row's h asks for.
PFGM_HD void begin_attempt(Row& r) {
  const double smallest = smallest_step(r);
  if (r.h < smallest) r.h = smallest;
  r.t_new = moved(r, r.h);
  r.stage = kFirst;
}

// `change` is not used if the probe's slope is not finite.
PFGM_HD void end_probe(Row& r, double change, bool finite) {
  const double length = std::fabs(r.end - r.t);
  if (finite) {
    const double curvature = change / r.h;
    const double steepest = r.slope > curvature ? r.slope : curvature;
    const double small = r.h * 1e-3 > 1e-6 ? r.h * 1e-3 : 1e-6;
    const double h = steepest <= 1e-15 ? small : std::pow(0.01 / steepest, 1. / (kErrorOrder + 1));
    r.h = h < 100 * r.h ? h : 100 * r.h;
  }
  if (r.h > length) r.h = length;
  begin_attempt(r);
}

struct Outcome {
  bool accepted;
  Status status;  // stopped: the row goes on
};

// Judges the attempt under way by the norm of its error and prepares the next. `finite`: state, slope and error are.
PFGM_HD Outcome end_attempt(Row& r, double norm, bool finite, const Tolerance& tolerance) {
  const bool accepted = finite && norm < 1;
  double factor = tolerance.min_factor;
  if (finite) {
    factor = tolerance.safety * std::pow(norm, -1. / (kErrorOrder + 1));
    factor = factor < tolerance.min_factor ? tolerance.min_factor : factor > tolerance.max_factor ? tolerance.max_factor : factor;
    if (r.retried && factor > 1) factor = 1;
  }
  const bool beyond = (r.t_new - r.frontier) * (r.end - r.t) >= 0;
  if (!finite) {
    if (!(beyond && r.failures > 0)) r.frontier = r.t_new;
    ++r.failures;
  } else if (accepted && beyond) {
    r.failures = 0;
  }
  r.h = std::fabs(r.t_new - r.t) * factor;
  r.retried = !accepted;
  ++r.steps;
  if (accepted) r.t = r.t_new;

  Status status = Status::stopped;
  if (accepted && r.t == r.end) {
    status = Status::success;
  } else if (!accepted && r.h < smallest_step(r)) {
    status = finite ? Status::step_underflow : Status::nonfinite;
  } else if (!finite && r.failures >= kNonfiniteLimit) {
    status = Status::nonfinite;
  } else if (r.steps >= tolerance.max_steps) {
    status = Status::max_steps;
  }
  if (status == Status::stopped) begin_attempt(r);
  return {accepted, status};
}

}  // namespace pfgm::ode
