// The field: a kernel for few dimensions and one for many, the latter with matrix products in float32; weights that are a
// Gaussian's or a power, in one of four ways; log weights, labels, 8-bit pixels, float64; pairs that are taken again in double.
#include <algorithm>
#include <memory>

#include "cases.hpp"

using pfgm::Element;

DataSet::DataSet(int64_t M_, int64_t N_, Element element_) : M(M_), N(N_), element(element_), center(size_t(N_), 0.0) {
  constexpr int64_t CLUSTERS = 8;
  Numbers numbers(1);
  std::vector<double> middle(size_t(CLUSTERS * N)), row(size_t(N), 0.0);
  for (double& v : middle) v = 0.5 * numbers.spread();
  for (int64_t j = 0; j < M; ++j) {
    const bool again = j % CLUSTERS == CLUSTERS - 1;
    for (int64_t n = 0; n < N; ++n) {
      double& v = row[size_t(n)];
      v = again ? v + 1e-3 * numbers.spread() : middle[size_t(j % CLUSTERS * N + n)] + 0.2 * numbers.spread();
      if (element == Element::u8) u8.push_back(uint8_t(std::min(std::max(127.5 * (v + 1), 0.0), 255.0)));
      else if (element == Element::f64) f64.push_back(v);
      else f32.push_back(float(v));
      center[size_t(n)] += (element == Element::u8 ? 2.0 * u8.back() - 255 : v) / double(M);
    }
    log_weights.push_back(0.5 * numbers.spread());
  }
}

const void* DataSet::address() const {
  if (element == Element::u8) return u8.data();
  return element == Element::f64 ? static_cast<const void*>(f64.data()) : f32.data();
}

double DataSet::value(int64_t j, int64_t n) const {
  const auto at = size_t(j * N + n);
  if (element == Element::u8) return (2.0 * u8[at] - 255) / 255;
  return element == Element::f64 ? f64[at] : double(f32[at]);
}

std::vector<int64_t> DataSet::segments(int64_t B) const {
  std::vector<int64_t> ranges;
  for (int64_t i = 0; i < B; ++i) {
    ranges.push_back(M * (i % 8) / 8);
    ranges.push_back(M * (i % 8 + 1) / 8);
  }
  return ranges;
}

namespace {

// ONCE: with one instruction set, since what is special about the case is compiled once.
enum Option { PLAIN = 0, WEIGHTS = 1, LABELS = 2, PIXELS = 4, DOUBLE = 8, ONCE = 16 };

struct Shape {
  const char* name;
  int64_t B, M, N;
  double D, lowest, highest;  // noise levels
  int options;
};

// In float32, distances to points that are near at these noise levels are too imprecise where they come from products; the
// levels above are mixed with none of these, so that neither hides the other.
constexpr double NEAR[] = {2e-3, 5e-2};

// The names say N and D. What decides about the kernel is the power (N + D) / 2.
const Shape SHAPES[] = {
    {"N1-D2", 128, 2048, 1, 2, 0.1, 10, PLAIN},
    {"N2-D1", 128, 2048, 2, 1, 0.1, 10, PLAIN},
    {"N2-D1-far", 128, 1024, 2, 1, 1e-9, 1e-8, PLAIN},  // too far for a single pass
    {"N2-D1-weights", 128, 512, 2, 1, 0.1, 10, WEIGHTS},
    {"N2-D1-double", 128, 512, 2, 1, 0.1, 10, DOUBLE},
    {"N3-D1", 128, 1024, 3, 1, 0.1, 10, PLAIN},  // a whole power, from square roots
    {"N3-D1-labels", 128, 2048, 3, 1, 0.1, 10, LABELS},
    {"N4-Dinf", 128, 1024, 4, INFINITY, 0.1, 10, PLAIN},
    {"N4-Dinf-weights", 128, 512, 4, INFINITY, 0.1, 10, WEIGHTS},
    {"N8-D16", 128, 512, 8, 16, 0.1, 10, PLAIN},
    {"N8-D16-near", 128, 256, 8, 16, 1e-8, 1e-6, PLAIN},
    {"N16-D1024", 128, 512, 16, 1024, 0.1, 10, PLAIN},  // a large power
    {"N16-D128-weights-double", 64, 256, 16, 128, 0.1, 10, WEIGHTS | DOUBLE},
    {"N20-D4", 64, 512, 20, 4, 1, 50, PLAIN},
    {"N64-D128", 64, 512, 64, 128, 1, 50, PLAIN},
    {"N64-D128-near", 64, 512, 64, 128, NEAR[0], NEAR[1], PLAIN},
    {"N64-D128-weights", 64, 512, 64, 128, 1, 50, WEIGHTS},
    {"N64-D128-labels", 64, 1024, 64, 128, 1, 50, LABELS},
    {"N64-D128-double", 32, 256, 64, 128, 0.1, 10, DOUBLE},
    {"N64-D128-huge", 16, 64, 64, 128, 1e16, 1e17, PLAIN},  // beyond float32: all in double
    {"N64-Dinf", 64, 512, 64, INFINITY, 1, 50, PLAIN},
    {"N64-Dinf-near", 64, 512, 64, INFINITY, NEAR[0], NEAR[1], PLAIN},
    {"N64-Dinf-weights", 64, 512, 64, INFINITY, 1, 50, WEIGHTS},
    {"N64-Dinf-double", 32, 256, 64, INFINITY, 0.1, 10, DOUBLE},
    {"N784-D128-pixels", 32, 256, 784, 128, 4, 80, PIXELS},
    {"N784-D128-pixels-near", 32, 256, 784, 128, NEAR[0], NEAR[1], PIXELS},
    {"N784-Dinf-pixels-double", 16, 64, 784, INFINITY, 0.1, 10, PIXELS | DOUBLE},
    {"N3072-D2048-pixels-alone", 1, 160, 3072, 2048, 4, 4, PIXELS},
    {"N4096-Dinf-pixels-parts", 1, 2048, 4096, INFINITY, 4, 4, PIXELS | ONCE},  // the least that is cut into parts
};

template <class T> struct Inputs {
  DataSet data;
  std::vector<T> x, mean;
  std::vector<double> scale, log_sum;
  std::vector<int64_t> segments;

  explicit Inputs(const Shape& shape)
      : data(shape.M, shape.N, shape.options & PIXELS ? Element::u8 : sizeof(T) == 8 ? Element::f64 : Element::f32) {
    Numbers numbers(2);
    for (int64_t i = 0; i < shape.B; ++i) {
      const double sigma = shape.lowest * std::pow(shape.highest / shape.lowest, double(i) / double(shape.B));
      for (int64_t n = 0; n < shape.N; ++n) x.push_back(T(data.value(7 * i % shape.M, n) + sigma * numbers.spread()));
      scale.push_back((std::isinf(shape.D) ? 2 : shape.D) * (sigma * sigma));
    }
    mean.resize(x.size());
    log_sum.resize(scale.size());
    if (shape.options & LABELS) segments = data.segments(shape.B);
  }
};

template <class T> Job prepare(const Shape& shape) {
  const auto in = std::make_shared<Inputs<T>>(shape);
  const pfgm::Problem problem{shape.B, shape.M, shape.N, in->x.data(), in->scale.data(), in->data.address(), in->data.element,
                              in->data.center.data(), shape.options & WEIGHTS ? in->data.log_weights.data() : nullptr,
                              in->segments.empty() ? nullptr : in->segments.data(), (double(shape.N) + shape.D) / 2,
                              in->mean.data(), in->log_sum.data(), 1, nullptr};
  return {[problem, in] { sizeof(T) == 4 ? pfgm::posterior_float(problem) : pfgm::posterior_double(problem); },
          [in] { return all_finite(in->mean) && all_finite(in->log_sum); }};
}

}  // namespace

std::vector<Case> field_cases() {
  std::vector<Case> cases;
  for (const Shape& shape : SHAPES)
    cases.push_back({std::string("field-") + shape.name, !(shape.options & ONCE),
                     [&shape] { return shape.options & DOUBLE ? prepare<double>(shape) : prepare<float>(shape); }});
  return cases;
}
