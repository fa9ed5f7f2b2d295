// The only file that knows Python. Tensors arrive as addresses and sizes, checked by the Python callers.
#include <pybind11/pybind11.h>

#include <string>

#include "field/field.hpp"
#include "pfgm_build.hpp"  // written by setup.py
#ifdef PFGM_WITH_CUDA
#include "cuda/devices.hpp"
#endif

namespace py = pybind11;

namespace {

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

bool signal_arrived() {
  py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// The operator of pfgm_fast/operator.py; addresses of contiguous tensors, 0 for none.
void posterior(bool wide, int64_t B, int64_t M, int64_t N, uintptr_t x, uintptr_t scale, uintptr_t data, const std::string& element,
               uintptr_t center, uintptr_t log_weights, uintptr_t segments, double power, uintptr_t mean, uintptr_t log_sum, int threads) {
  const pfgm::Element kind = element == "uint8" ? pfgm::Element::u8 : element == "float64" ? pfgm::Element::f64 : pfgm::Element::f32;
  auto doubles = [](uintptr_t p) { return reinterpret_cast<const double*>(p); };
  const pfgm::Problem problem{B, M, N, reinterpret_cast<const void*>(x), doubles(scale), reinterpret_cast<const void*>(data), kind,
                              doubles(center), doubles(log_weights), reinterpret_cast<const int64_t*>(segments), power,
                              reinterpret_cast<void*>(mean), reinterpret_cast<double*>(log_sum), threads, &signal_arrived};
  {
    py::gil_scoped_release unlocked;
    wide ? pfgm::posterior_double(problem) : pfgm::posterior_float(problem);
  }
  if (PyErr_Occurred()) throw py::error_already_set();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native parts of pfgm_fast.";
  m.def("build_info", &build_info);
  m.def("cuda_devices", &cuda_devices);
  m.def("instruction_set", &pfgm::instruction_set);
  m.def("select_instruction_set", &pfgm::select_instruction_set);
  m.def("posterior", &posterior);
}
