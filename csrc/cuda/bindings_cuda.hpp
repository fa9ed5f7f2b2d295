// The CUDA loop for Python. Tensors arrive as addresses, checked by pfgm_fast/ode/cuda.py.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "ode/graph.hpp"
#include "ode/loop.hpp"

namespace pfgm::cuda {

namespace py = pybind11;

inline std::unique_ptr<ode::DeviceSlots> make_slots(bool wide, const std::vector<uintptr_t>& addresses, const std::vector<int64_t>& sizes,
                                                    const std::vector<double>& numbers, int device, uintptr_t flags) {
  if (addresses.size() != ode::kAddresses || sizes.size() != ode::kSizes || numbers.size() != ode::kNumbers)
    throw std::invalid_argument("CudaSlots takes 16 addresses, 5 sizes and 9 numbers");
  const ode::Description description{addresses.data(), sizes.data(), numbers.data()};
  return std::make_unique<ode::DeviceSlots>(wide, description, device, reinterpret_cast<volatile int32_t*>(flags));
}

inline void solve_field(ode::DeviceSlots& slots, int64_t M, uintptr_t data, uintptr_t log_weights, uintptr_t segments, double power,
                        double spread, uintptr_t answers, uintptr_t stream) {
  slots.solve({M, reinterpret_cast<const float*>(data), reinterpret_cast<const double*>(log_weights),
               reinterpret_cast<const int64_t*>(segments), power, spread},
              answers, stream);
}

// Waits for the end of the launch; a signal such as Ctrl-C ends it after the iteration under way.
inline void wait(ode::WhileGraph& graph) {
  using namespace std::chrono_literals;
  bool interrupted = false;
  {
    const py::gil_scoped_release unlocked;
    for (int64_t i = 1; !graph.finished(); ++i) {
      std::this_thread::sleep_for(20us);
      if (interrupted || i % 1000 != 0) continue;
      const py::gil_scoped_acquire locked;
      interrupted = PyErr_CheckSignals() != 0;
      if (interrupted) graph.stop();
    }
  }
  if (interrupted) throw py::error_already_set();
}

inline void bind_cuda(py::module_& m) {
  using ode::DeviceSlots, ode::WhileGraph;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<DeviceSlots>(m, "CudaSlots")
      .def(py::init(&make_slots))
      .def("start", &DeviceSlots::start)
      .def("stage_in", &DeviceSlots::stage_in)
      .def("stage_out", &DeviceSlots::stage_out)
      .def("solve_field", &solve_field)
      .def("ask", &DeviceSlots::ask)
      .def("finished", &DeviceSlots::finished, unlocked)
      .def_property_readonly("left", &DeviceSlots::left)
      .def_property_readonly_static("slot_bytes", [](const py::object&) { return sizeof(ode::Slot); })
      .def_property_readonly_static("counter_bytes", [](const py::object&) { return sizeof(ode::Counters); })
      .def_property_readonly_static("ahead", [](const py::object&) { return ode::kAhead; });
  py::class_<WhileGraph>(m, "WhileGraph")
      .def(py::init<const DeviceSlots&, uintptr_t, uintptr_t>(), py::keep_alive<1, 2>())
      .def("launch", &WhileGraph::launch)
      .def("wait", &wait);
}

}  // namespace pfgm::cuda
