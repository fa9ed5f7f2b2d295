// The empirical field on a CPU: posterior mean and log-sum-exp of a data set in one pass (pfgm_fast/operator.py states it).
#pragma once
#include <cstdint>

namespace pfgm {

enum class Element { f32, f64, u8 };  // u8: pixel u stands for (2u - 255) / 255

struct Problem {
  int64_t B, M, N;
  const void* x;              // (B, N) float or double
  const double* scale;        // (B)
  const void* data;           // (M, N)
  Element element;
  const double* center;       // (N), used for products only
  const double* log_weights;  // (M) or null
  const int64_t* segments;    // (B, 2) or null: the half-open range of data that each row sees
  double power;               // (N + D) / 2 or inf
  void* mean;                 // (B, N) like x
  double* log_sum;            // (B)
  int threads;
  bool (*interrupted)();      // asked between chunks of rows; true ends the work, or null
};

void posterior_float(const Problem&);
void posterior_double(const Problem&);

const char* instruction_set();              // the one in use
bool select_instruction_set(const char*);  // "base", "avx2" or "avx512"; false if it cannot run here

}  // namespace pfgm
