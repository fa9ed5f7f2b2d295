// Launches of the slots' kernels, and how the host learns that all rows have left: late, and without stopping the device.
// Plain types only: files compiled by the C++ compiler include no CUDA header. A stream is its handle.
#pragma once
#include <cstdint>
#include <memory>
#include <variant>

#include "ode/machine.hpp"
#include "ode/small_field.hpp"

namespace pfgm::ode {

// Iterations that the host may be ahead of what it knows: enough to keep the device busy, few to be run in vain at the end.
constexpr int kAhead = 3;

class DeviceSlots {
 public:
  // `flags`: kAhead numbers in pinned memory. All memory is the caller's and outlives this.
  DeviceSlots(bool wide, const Description& description, int device, volatile int32_t* flags);
  ~DeviceSlots();

  void start(uintptr_t stream);
  void stage_in(uintptr_t stream) const;
  void stage_out(uintptr_t answers, uintptr_t stream) const;  // (slots, n), like x
  // Once started, the whole solve of a field in one launch; answers: (slots, n) float32 to work in.
  void solve(const SmallField& field, uintptr_t answers, uintptr_t stream);

  // Asks for the number of rows left, as it is after what the stream was given so far.
  void ask(uintptr_t stream);
  // Whether all rows are known to have left. Waits for the oldest answer if kAhead are awaited.
  bool finished();
  int32_t left() const { return left_; }  // rows, as far as is known

  const std::variant<Machine<float>, Machine<double>>& machine() const { return machine_; }
  int device() const { return device_; }

 private:
  struct Events;

  std::variant<Machine<float>, Machine<double>> machine_;
  int device_;
  volatile int32_t* flags_;
  int32_t left_;
  int64_t asked_ = 0, answered_ = 0;
  std::unique_ptr<Events> events_;
};

}  // namespace pfgm::ode
