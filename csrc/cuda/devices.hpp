// What the CUDA driver offers. Plain types only: files compiled by the C++ compiler include no CUDA header.
#pragma once

#include <string>

namespace pfgm::cuda {

struct Devices {
  int count;           // usable devices
  std::string reason;  // why there are none; empty otherwise
};

Devices devices();

// 1000 * major + 10 * minor of the runtime linked into the extension.
int runtime_version();

// The same for the newest runtime that the installed driver serves; 0 without a driver.
int driver_version();

}  // namespace pfgm::cuda
