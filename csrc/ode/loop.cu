#include "ode/loop.hpp"

#include "cuda/runtime.cuh"
#include "ode/kernels.cuh"
#include "ode/small_field.cuh"

namespace pfgm::ode {

using cuda::check;
using cuda::OnDevice;
using cuda::stream_at;

struct DeviceSlots::Events {
  cudaEvent_t at[kAhead] = {};

  Events() {
    for (cudaEvent_t& event : at) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  }
  ~Events() {
    for (cudaEvent_t event : at)
      if (event) cudaEventDestroy(event);
  }
};

namespace {

std::variant<Machine<float>, Machine<double>> described(bool wide, const Description& description) {
  if (wide) return machine_of<double>(description);
  return machine_of<float>(description);
}

// Calls launch(machine, blocks, threads) for the machine of either dtype.
template <class Launch>
void each_slot(const std::variant<Machine<float>, Machine<double>>& machine, int device, const char* what, const Launch& launch) {
  const OnDevice on(device);
  std::visit([&](const auto& m) { launch(m, unsigned(m.width), block_size(m.n)); }, machine);
  check(cudaGetLastError(), what);
}

template <class T>
const T* answers_of(const Machine<T>&, uintptr_t answers) {
  return reinterpret_cast<const T*>(answers);
}

}  // namespace

DeviceSlots::DeviceSlots(bool wide, const Description& description, int device, volatile int32_t* flags)
    : machine_(described(wide, description)), device_(device), flags_(flags), left_(int32_t(description.sizes[0])) {
  const OnDevice on(device);
  events_ = std::make_unique<Events>();
}

DeviceSlots::~DeviceSlots() {
  // The memory of the flags goes with its owner: nothing may still be written to it.
  for (; answered_ < asked_; ++answered_) cudaEventSynchronize(events_->at[answered_ % kAhead]);
}

void DeviceSlots::start(uintptr_t stream) {
  each_slot(machine_, device_, "start", [=](const auto& m, unsigned blocks, unsigned threads) {
    reset<<<1, 1, 0, stream_at(stream)>>>(m);
    ode::start<<<blocks, threads, 0, stream_at(stream)>>>(m);
  });
  ask(stream);
}

void DeviceSlots::stage_in(uintptr_t stream) const {
  each_slot(machine_, device_, "stage_in", [=](const auto& m, unsigned blocks, unsigned) {
    ode::stage_in<<<blocks, block_size(m.n, kMostThreads), 0, stream_at(stream)>>>(m);
  });
}

void DeviceSlots::stage_out(uintptr_t answers, uintptr_t stream) const {
  each_slot(machine_, device_, "stage_out", [=](const auto& m, unsigned blocks, unsigned threads) {
    ode::stage_out<<<blocks, threads, 0, stream_at(stream)>>>(m, answers_of(m, answers), Unlooped{});
  });
}

void DeviceSlots::solve(const SmallField& field, uintptr_t answers, uintptr_t stream) {
  const OnDevice on(device_);
  const Machine<float>& m = std::get<Machine<float>>(machine_);
  auto* kernel = m.n <= 2 ? solve_field<2> : m.n <= 4 ? solve_field<4> : solve_field<kFieldDimensions>;
  kernel<<<unsigned(m.width), kFieldThreads, 0, stream_at(stream)>>>(m, field, reinterpret_cast<float*>(answers));
  check(cudaGetLastError(), "solve_field");
}

void DeviceSlots::ask(uintptr_t stream) {
  finished();  // room for one more
  const OnDevice on(device_);
  const Counters* counters = std::visit([](const auto& m) { return m.counters; }, machine_);
  const int turn = int(asked_ % kAhead);
  int32_t* flag = const_cast<int32_t*>(flags_ + turn);
  check(cudaMemcpyAsync(flag, &counters->running, sizeof(int32_t), cudaMemcpyDeviceToHost, stream_at(stream)), "cudaMemcpyAsync");
  check(cudaEventRecord(events_->at[turn], stream_at(stream)), "cudaEventRecord");
  ++asked_;
}

bool DeviceSlots::finished() {
  const OnDevice on(device_);
  for (; answered_ < asked_ && left_ > 0; ++answered_) {
    cudaEvent_t event = events_->at[answered_ % kAhead];
    if (asked_ - answered_ == kAhead) {
      check(cudaEventSynchronize(event), "cudaEventSynchronize");
    } else if (!cuda::arrived(event)) {
      break;
    }
    left_ = flags_[answered_ % kAhead];
  }
  return left_ <= 0;
}

}  // namespace pfgm::ode
