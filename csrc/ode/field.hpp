// A whole solve of dx/dt = x - x_hat(x, sigma), t = log sigma, with the empirical field of csrc/field.
#pragma once
#include <cstdint>

#include "field/field.hpp"
#include "ode/slots.hpp"

namespace pfgm::ode {

struct Field {
  int64_t M;
  const void* data;           // (M, N), and so on as pfgm::Problem has them
  Element element;
  const double* center;
  const double* log_weights;
  const int64_t* segments;    // (B, 2), by row of the record, or null
  double D;
  double first, last;         // the noise levels at the ends
  bool (*interrupted)();      // true once it has been true
};

// At most so many evaluations; whether rows are left. When interrupted, the slots have not moved since the last whole evaluation.
template <class T> bool solve(Slots<T>& slots, const Field& field, int64_t evaluations);

}  // namespace pfgm::ode
