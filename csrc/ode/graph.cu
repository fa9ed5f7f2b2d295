#include "ode/graph.hpp"

#include <type_traits>
#include <vector>

#include "cuda/runtime.cuh"
#include "ode/kernels.cuh"

namespace pfgm::ode {

using cuda::check;
using cuda::OnDevice;

struct WhileGraph::Handles {
  int device;
  Counters* counters;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaEvent_t end = nullptr;
  cudaStream_t aside = nullptr;  // for what must not wait for the loop
  bool launched = false;

  ~Handles() {
    if (launched) cudaEventSynchronize(end);
    if (executable) cudaGraphExecDestroy(executable);
    if (graph) cudaGraphDestroy(graph);
    if (end) cudaEventDestroy(end);
    if (aside) cudaStreamDestroy(aside);
  }
};

namespace {

struct While {
  cudaGraphConditionalHandle handle;
  __device__ void operator()(bool more) const { cudaGraphSetConditional(handle, more ? 1 : 0); }
};

const char* name_of(cudaGraphNodeType type) {
  switch (type) {
    case cudaGraphNodeTypeHost: return "a call of a host function";
    case cudaGraphNodeTypeWaitEvent: return "a wait for an event";
    case cudaGraphNodeTypeEventRecord: return "the record of an event";
    case cudaGraphNodeTypeExtSemaphoreSignal: return "the signal of a semaphore";
    case cudaGraphNodeTypeExtSemaphoreWait: return "a wait for a semaphore";
    case cudaGraphNodeTypeMemAlloc: return "an allocation of memory";
    case cudaGraphNodeTypeMemFree: return "a release of memory";
    case cudaGraphNodeTypeConditional: return "a conditional node";
    default: return "a node of an unknown type";
  }
}

// The body of a WHILE node holds kernels, copies, fills and graphs of such.
void check_child(cudaGraph_t graph) {
  size_t count = 0;
  check(cudaGraphGetNodes(graph, nullptr, &count), "cudaGraphGetNodes");
  std::vector<cudaGraphNode_t> nodes(count);
  if (count) check(cudaGraphGetNodes(graph, nodes.data(), &count), "cudaGraphGetNodes");
  for (cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type;
    check(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
    if (type == cudaGraphNodeTypeGraph) {
      cudaGraph_t inner;
      check(cudaGraphChildGraphNodeGetGraph(node, &inner), "cudaGraphChildGraphNodeGetGraph");
      check_child(inner);
    } else if (type != cudaGraphNodeTypeKernel && type != cudaGraphNodeTypeMemcpy && type != cudaGraphNodeTypeMemset &&
               type != cudaGraphNodeTypeEmpty) {
      throw std::invalid_argument(std::string("the captured evaluation holds ") + name_of(type) + ", which a WHILE node cannot repeat");
    }
  }
}

cudaGraph_t add_while(cudaGraph_t graph, cudaGraphConditionalHandle handle) {
  cudaGraphNodeParams parameters{};
  parameters.type = cudaGraphNodeTypeConditional;
  parameters.conditional.handle = handle;
  parameters.conditional.type = cudaGraphCondTypeWhile;
  parameters.conditional.size = 1;
  cudaGraphNode_t node;
#if CUDART_VERSION >= 13000
  check(cudaGraphAddNode(&node, graph, nullptr, nullptr, 0, &parameters), "cudaGraphAddNode");
#else
  check(cudaGraphAddNode(&node, graph, nullptr, 0, &parameters), "cudaGraphAddNode");
#endif
  return parameters.conditional.phGraph_out[0];
}

template <class... Parameters, class... Arguments>
cudaGraphNode_t add_kernel(cudaGraph_t graph, const cudaGraphNode_t* after, void (*kernel)(Parameters...), unsigned blocks,
                           unsigned threads, Arguments... arguments) {
  static_assert((std::is_same_v<Parameters, Arguments> && ...), "the graph copies each argument by the kernel's size of it");
  void* addresses[] = {&arguments...};
  cudaKernelNodeParams parameters{};
  parameters.func = reinterpret_cast<void*>(kernel);
  parameters.gridDim = dim3(blocks);
  parameters.blockDim = dim3(threads);
  parameters.kernelParams = addresses;
  cudaGraphNode_t node;
  check(cudaGraphAddKernelNode(&node, graph, after, after ? 1 : 0, &parameters), "cudaGraphAddKernelNode");
  return node;
}

template <class T>
void fill_body(cudaGraph_t body, const Machine<T>& m, uintptr_t answers, cudaGraph_t network, cudaGraphConditionalHandle handle) {
  const unsigned blocks = unsigned(m.width), threads = block_size(m.n);
  const cudaGraphNode_t in = add_kernel(body, nullptr, stage_in<T>, blocks, block_size(m.n, kMostThreads), m);
  cudaGraphNode_t child;
  check(cudaGraphAddChildGraphNode(&child, body, &in, 1, network), "cudaGraphAddChildGraphNode");
  add_kernel(body, &child, stage_out<T, While>, blocks, threads, m, reinterpret_cast<const T*>(answers), While{handle});
}

}  // namespace

WhileGraph::WhileGraph(const DeviceSlots& slots, uintptr_t answers, uintptr_t network) : handles_(std::make_unique<Handles>()) {
  const OnDevice on(slots.device());
  Handles& h = *handles_;
  h.device = slots.device();
  h.counters = std::visit([](const auto& m) { return m.counters; }, slots.machine());
  const auto child = reinterpret_cast<cudaGraph_t>(network);
  check_child(child);
  check(cudaEventCreateWithFlags(&h.end, cudaEventDisableTiming), "cudaEventCreate");
  check(cudaGraphCreate(&h.graph, 0), "cudaGraphCreate");
  cudaGraphConditionalHandle handle;
  // every launch enters the loop; without the flag it would remember how the last one ended
  check(cudaGraphConditionalHandleCreate(&handle, h.graph, 1, cudaGraphCondAssignDefault), "cudaGraphConditionalHandleCreate");
  const cudaGraph_t body = add_while(h.graph, handle);
  std::visit([&](const auto& m) { fill_body(body, m, answers, child, handle); }, slots.machine());
  check(cudaGraphInstantiate(&h.executable, h.graph, 0), "cudaGraphInstantiate");
}

WhileGraph::~WhileGraph() = default;

void WhileGraph::launch(uintptr_t stream) {
  const OnDevice on(handles_->device);
  check(cudaGraphLaunch(handles_->executable, cuda::stream_at(stream)), "cudaGraphLaunch");
  check(cudaEventRecord(handles_->end, cuda::stream_at(stream)), "cudaEventRecord");
  handles_->launched = true;
}

bool WhileGraph::finished() const {
  const OnDevice on(handles_->device);
  return cuda::arrived(handles_->end);
}

void WhileGraph::stop() {
  const OnDevice on(handles_->device);
  if (!handles_->aside) check(cudaStreamCreateWithFlags(&handles_->aside, cudaStreamNonBlocking), "cudaStreamCreate");
  check(cudaMemsetAsync(&handles_->counters->cap, 0, sizeof(int64_t), handles_->aside), "cudaMemsetAsync");
}

}  // namespace pfgm::ode
