// What a sweep over data rows takes and gives: the boundary between the threads (field.cpp) and the kernels of one instruction set.
#pragma once
#include <cstdint>

#include "field/field.hpp"

namespace pfgm {

// Sums of one query row, relative to exp(reference); `sum` is relative to the centre of the data.
struct Accumulator {
  double reference, total;
  double* sum;  // (N)
};

// Queries that go through the data side by side, one in each lane.
template <class T>
struct Tile {
  const T* panel;           // (N, lanes): -2 (x - centre) for products, x for differences
  const T* const* x;        // lanes pointers to raw query rows
  const double* norm;       // lanes: |x - centre|^2 for products, 0 for differences
  const double* scale;      // lanes
  const bool* exact;        // lanes: out of the safe range of T, every pair by differences in double
  Accumulator* accumulator;  // lanes
};

// Everything is in the units of `raw` data: 8-bit pixels are whole numbers 2u - 255, x is multiplied by `unit`.
template <class T>
struct Sweep {
  const void* data;
  Element element;
  int64_t N, begin, end;      // rows of data to visit
  const double* center;       // (N), zeros for differences
  const double* log_weights;  // or null
  double top_log_weight, log_weight_range;
  double power, unit;
  double negligible;          // nats below the largest log weight at which a weight is an exact zero
  int64_t tiles;
  const Tile<T>* tile;
};

template <class T>
struct Kernels {
  int lanes;                             // queries in a tile
  bool (*products)(int64_t N);           // whether distances of this N come from products (else from differences)
  int64_t (*workspace)(int64_t N, int64_t tiles);  // bytes
  void (*sweep)(const Sweep<T>&, void* workspace);
};

struct InstructionSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

}  // namespace pfgm
