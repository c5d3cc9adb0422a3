#include "expert_service/kernels/cuda/launch_graphs.h"

#include <memory>
#include <type_traits>
#include <utility>

#include "services/core/log.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};

}  // namespace

absl::StatusOr<bool> LaunchGraphs::Launch(
    const Form& form, cudaStream_t stream,
    absl::FunctionRef<absl::Status()> enqueue) {
  if (is_off_) return false;
  const auto it = graphs_.find(form);
  if (it == graphs_.end()) {
    if (graphs_.size() < kMaxForms) graphs_.emplace(form, nullptr);
    return false;
  }
  if (it->second == nullptr) {
    auto graph = Record(stream, enqueue);
    if (!graph.ok()) {
      is_off_ = true;
      Log(LogLevel::kWarning, "batches are queued kernel by kernel",
          {{"why", graph.status().message()}});
      return false;
    }
    it->second = *std::move(graph);
  }
  RETURN_IF_ERROR(
      CudaStatus(cudaGraphLaunch(it->second.get(), stream), "cudaGraphLaunch"));
  return true;
}

absl::StatusOr<CudaGraph> LaunchGraphs::Record(
    cudaStream_t stream, absl::FunctionRef<absl::Status()> enqueue) {
  // Other threads may allocate and upload meanwhile.
  RETURN_IF_ERROR(CudaStatus(
      cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
      "cudaStreamBeginCapture"));
  const absl::Status enqueued = enqueue();
  // In any case, or the stream would record for ever.
  cudaGraph_t recorded = nullptr;
  const absl::Status ended = CudaStatus(cudaStreamEndCapture(stream, &recorded),
                                        "cudaStreamEndCapture");
  const std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, DestroyGraph> graph(
      recorded);
  RETURN_IF_ERROR(enqueued);
  RETURN_IF_ERROR(ended);
  cudaGraphExec_t executable = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaGraphInstantiate(&executable, graph.get(), 0),
                             "cudaGraphInstantiate"));
  return CudaGraph(executable);
}

}  // namespace expertmesh::expert
