// The empirical field whose solve is one kernel (small_field.cuh).
#pragma once
#include <cstdint>

namespace pfgm::ode {

constexpr int kFieldThreads = 256;  // of a block; the sums have that many lanes
constexpr int kFieldDimensions = 16;

struct SmallField {
  int64_t M;
  const float* data;          // (M, n), n <= kFieldDimensions
  const double* log_weights;  // (M) or null
  const int64_t* segments;    // (B, 2) or null: the half-open range of data that each row sees
  double power;               // (n + D) / 2 or inf
  double spread;              // D, or 2 for D = inf: the kernel's scale is spread * sigma^2
};

}  // namespace pfgm::ode
