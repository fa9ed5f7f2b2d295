// A whole solve as one launch: a CUDA graph whose WHILE node repeats stage-in, the captured network and stage-out until all rows have left.
#pragma once
#include <cstdint>
#include <memory>

#include "ode/loop.hpp"

namespace pfgm::ode {

class WhileGraph {
 public:
  // `network`: the cudaGraph_t captured from an evaluation between the slots' tensors and `answers`. It is cloned; the memory it works in
  // is not: the capture's owner outlives this. Throws std::invalid_argument if it holds nodes that the body of a WHILE may not.
  WhileGraph(const DeviceSlots& slots, uintptr_t answers, uintptr_t network);
  ~WhileGraph();

  void launch(uintptr_t stream);
  bool finished() const;  // whether the last launch is through
  void stop();            // ends the loop after the iteration under way; rows still running stay where they stand

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace pfgm::ode
