// The only file that knows Python. Tensors arrive as addresses and sizes, checked by the Python callers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <vector>

#include "field/field.hpp"
#include "ode/field.hpp"
#include "ode/slots.hpp"
#include "ode/update.hpp"
#include "pfgm_build.hpp"  // written by setup.py
#ifdef PFGM_WITH_CUDA
#include "cuda/bindings_cuda.hpp"
#include "cuda/devices.hpp"
#endif

namespace py = pybind11;

namespace {

template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

py::dict build_info() {
  py::dict info;
  info["compiler"] = PFGM_BUILD_COMPILER;
  info["isas"] = PFGM_BUILD_ISAS;
  info["cuda"] = PFGM_BUILD_CUDA;
  return info;
}

// (number of devices, why there are none, version of the linked runtime, version that the driver serves)
py::tuple cuda_devices() {
#ifdef PFGM_WITH_CUDA
  const pfgm::cuda::Devices found = pfgm::cuda::devices();
  return py::make_tuple(found.count, found.reason, pfgm::cuda::runtime_version(), pfgm::cuda::driver_version());
#else
  return py::make_tuple(0, std::string("CUDA: ") + PFGM_BUILD_CUDA, 0, 0);
#endif
}

// Whether a signal's handler has raised, now or before.
bool signal_arrived() {
  py::gil_scoped_acquire gil;
  return PyErr_Occurred() || PyErr_CheckSignals() != 0;
}

void throw_what_a_signal_raised() {
  if (PyErr_Occurred()) throw py::error_already_set();
}

pfgm::Element element_of(const std::string& dtype) {
  return dtype == "uint8" ? pfgm::Element::u8 : dtype == "float64" ? pfgm::Element::f64 : pfgm::Element::f32;
}

// The operator of pfgm_fast/operator.py; addresses of contiguous tensors, 0 for none.
void posterior(bool wide, int64_t B, int64_t M, int64_t N, uintptr_t x, uintptr_t scale, uintptr_t data, const std::string& element,
               uintptr_t center, uintptr_t log_weights, uintptr_t segments, double power, uintptr_t mean, uintptr_t log_sum, int threads) {
  const pfgm::Problem problem{B, M, N, at<void>(x), at<double>(scale), at<void>(data), element_of(element), at<double>(center),
                              at<double>(log_weights), at<int64_t>(segments), power, at<void>(mean), at<double>(log_sum), threads,
                              &signal_arrived};
  {
    py::gil_scoped_release unlocked;
    wide ? pfgm::posterior_double(problem) : pfgm::posterior_float(problem);
  }
  throw_what_a_signal_raised();
}

// The slots of pfgm_fast/ode/native.py for states of type T.
template <class T> void bind_slots(py::module_& m, const char* name) {
  using Slots = pfgm::ode::Slots<T>;
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  const auto make = [](int64_t B, int64_t n, uintptr_t x, uintptr_t t, uintptr_t status, uintptr_t nfe, uintptr_t accepted,
                       uintptr_t rejected, uintptr_t end, int64_t slots, double rtol, double atol, double safety, double min_factor,
                       double max_factor, int64_t max_steps, int threads) {
    const pfgm::ode::Record<T> record{at<T>(x), at<double>(t), at<int8_t>(status), at<int64_t>(nfe), at<int64_t>(accepted),
                                      at<int64_t>(rejected), at<double>(end), B, n};
    return Slots(record, slots, {rtol, atol, safety, min_factor, max_factor, max_steps}, threads);
  };
  const auto solve_field = [](Slots& slots, int64_t M, uintptr_t data, const std::string& element, uintptr_t center,
                              uintptr_t log_weights, uintptr_t segments, double D, double first, double last, int64_t evaluations) {
    const pfgm::ode::Field field{M, at<void>(data), element_of(element), at<double>(center), at<double>(log_weights),
                                 at<int64_t>(segments), D, first, last, &signal_arrived};
    bool rows_left;
    {
      py::gil_scoped_release unlocked;
      rows_left = pfgm::ode::solve(slots, field, evaluations);
    }
    throw_what_a_signal_raised();
    return rows_left;
  };
  py::class_<Slots>(m, name)
      .def(py::init(make))
      .def("busy", &Slots::busy)
      .def("rows", [](const Slots& slots, uintptr_t out) { slots.rows(at<int64_t>(out)); })
      .def("stage_in", [](Slots& slots, uintptr_t x, uintptr_t t) { slots.stage_in(at<T>(x), at<double>(t)); }, Unlocked())
      .def("stage_out", [](Slots& slots, uintptr_t slope) { return slots.stage_out(at<T>(slope)); }, Unlocked())
      .def("starting", [](const Slots& slots, uintptr_t rows, uintptr_t slope) { return slots.starting(at<int64_t>(rows), at<T>(slope)); })
      .def("restart", [](Slots& slots, uintptr_t slope) { slots.restart(at<T>(slope)); })
      .def("attempted", [](const Slots& slots) { return slots.attempted().size(); })
      .def("copy_attempted", [](const Slots& slots, uintptr_t out) { std::copy(slots.attempted().begin(), slots.attempted().end(), at<int64_t>(out)); })
      .def("solve_field", solve_field);
}

// The half steps of pfgm_fast/native_update.py for states of type T.
template <class T> void bind_update(py::module_& m, const char* attempt, const char* advance) {
  using Addresses = std::vector<uintptr_t>;
  const auto combination = [](int64_t B, int64_t n, uintptr_t x, double a, const std::vector<double>& factors, const Addresses& terms, int threads) {
    pfgm::ode::Combination<T> c{B, n, at<T>(x), T(a), {factors.begin(), factors.end()}, {}, threads};
    for (const uintptr_t term : terms) c.terms.push_back(at<T>(term));
    return c;
  };
  m.def(attempt, [combination](int64_t B, int64_t n, uintptr_t x, double a, const std::vector<double>& factors, const Addresses& terms, int threads,
                               uintptr_t status, uintptr_t out) {
    const auto c = combination(B, n, x, a, factors, terms, threads);
    const py::gil_scoped_release unlocked;
    pfgm::ode::attempt(c, at<T>(out), at<int8_t>(status));
  });
  m.def(advance, [combination](int64_t B, int64_t n, uintptr_t x, double a, const std::vector<double>& factors, const Addresses& terms, int threads,
                               uintptr_t status, uintptr_t t, uintptr_t accepted, double t_next, int64_t count) {
    const auto c = combination(B, n, x, a, factors, terms, threads);
    const py::gil_scoped_release unlocked;
    pfgm::ode::advance(c, at<T>(x), at<double>(t), at<int64_t>(accepted), at<int8_t>(status), t_next, count);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native parts of pfgm_fast.";
  m.def("build_info", &build_info);
  m.def("cuda_devices", &cuda_devices);
  m.def("instruction_set", &pfgm::instruction_set);
  m.def("select_instruction_set", &pfgm::select_instruction_set);
  m.def("posterior", &posterior);
  bind_slots<float>(m, "SlotsFloat");
  bind_slots<double>(m, "SlotsDouble");
  bind_update<float>(m, "attempt_float", "advance_float");
  bind_update<double>(m, "attempt_double", "advance_double");
#ifdef PFGM_WITH_CUDA
  pfgm::cuda::bind_cuda(m);
#endif
}
