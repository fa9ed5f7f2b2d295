#include "cuda/devices.hpp"

#include <cuda_runtime_api.h>

namespace pfgm::cuda {

Devices devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return {count, count > 0 ? "" : "the driver reports no device"};
  cudaGetLastError();  // a failed query must not be found by the next, unrelated check
  return {0, std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status)};
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace pfgm::cuda
