// A number of slots, each at work on one row of a record, each with its own stage and step: the machine of pfgm_fast/ode on a CPU.
#pragma once
#include <cstdint>
#include <vector>

#include "ode/step.hpp"

namespace pfgm::ode {

// The tensors of pfgm_fast.solution.Record; x (B, n), the rest (B).
template <class T>
struct Record {
  T* x;
  double* t;
  int8_t* status;
  int64_t *nfe, *accepted, *rejected;
  const double* end;
  int64_t B, n;
};

// What a row reaches is written to the record at once, so that the record is right whenever the solve is left. A row's bits depend
// on that row alone: neither on the slots nor on the threads.
template <class T>
class Slots {
 public:
  Slots(const Record<T>& record, int64_t slots, const Tolerance& tolerance, int threads);
  Slots(Slots&&) = default;  // slots point into slopes_: no copies

  int64_t busy() const { return int64_t(slots_.size()); }
  int64_t size_of_row() const { return record_.n; }
  int threads() const { return threads_; }
  void rows(int64_t* out) const;  // (busy) of the record, in the order of everything that is packed

  // What the slots ask for: states (busy, n), finite, and times (busy).
  void stage_in(T* x, double* t);
  // Takes the slopes (busy, n) asked for. Whether rows have come or left.
  bool stage_out(const T* slope);

  // The rows about to attempt a step and their slopes (m, n) there; m <= busy.
  int64_t starting(int64_t* rows, T* slope) const;
  // Other slopes (m, n) for the rows of `starting`, whose states in the record were changed.
  void restart(const T* slope);
  // Those whose attempts ended in the last stage_out.
  const std::vector<int64_t>& attempted() const { return attempted_; }

 private:
  struct Slot {
    Row row;
    int64_t index;     // of the row in the record
    T* k;              // its slopes, kSlopes of them
    bool finite;       // whether the state of its stage is
    bool ended, left;  // in the last stage_out: its attempt, its row
  };

  bool load(Slot& slot);
  template <class N> void ask(Slot& slot, N n, T* x, double* t);
  template <class N> void answer(Slot& slot, N n, const T* slope);
  template <class N> void judge(Slot& slot, N n, double norm, bool finite, const T* slope);
  template <class Work> void each(const Work& work);

  Record<T> record_;
  Tolerance tolerance_;
  int threads_;
  int64_t next_ = 0;          // the first row of the queue
  std::vector<T> slopes_;
  std::vector<Slot> slots_;   // the busy ones
  std::vector<int64_t> attempted_;
};

extern template class Slots<float>;
extern template class Slots<double>;

}  // namespace pfgm::ode
