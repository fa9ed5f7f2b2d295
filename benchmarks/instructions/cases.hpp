// The fixed cases whose instructions are counted, and the data that they share.
#pragma once
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "field/field.hpp"
#include "numbers.hpp"

struct Job {
  std::function<void()> work;   // counted
  std::function<bool()> right;  // whether it did what it was to do
};

struct Case {
  std::string name;
  bool every_set;  // whether there is code of its own for every instruction set
  std::function<Job()> prepare;
};

std::vector<Case> field_cases();
std::vector<Case> ode_cases();

// Eight clusters, of which every eighth point nearly repeats the one before.
struct DataSet {
  int64_t M, N;
  pfgm::Element element;
  std::vector<float> f32;
  std::vector<double> f64;
  std::vector<uint8_t> u8;
  std::vector<double> center, log_weights;

  DataSet(int64_t M, int64_t N, pfgm::Element element);
  const void* address() const;
  double value(int64_t j, int64_t n) const;
  std::vector<int64_t> segments(int64_t B) const;  // row i sees the eighth of the data that it takes in turn
};

template <class T> bool all_finite(const std::vector<T>& values) {
  for (const T v : values)
    if (!std::isfinite(v)) return false;
  return true;
}
