#pragma once

// One batch's share of a device: a stream, memory, and what is queued there.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "expert_service/kernels/cuda/cuda_memory.h"
#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "expert_service/kernels/cuda/grouped_gemm.h"
#include "expert_service/kernels/cuda/launch_graphs.h"

namespace expertmesh::expert {

// How long a batch's parts took, by the device's clock.
struct BatchTimes {
  absl::Duration copy_in;
  absl::Duration kernels;
  absl::Duration copy_out;
};

// Takes no memory and calls nothing that waits while batches run. One thread,
// whose device is the slot's.
class BatchSlot {
 public:
  struct Options {
    FfnShape shape;
    int64_t max_rows = 0;     // of a batch
    int64_t max_groups = 0;   // likewise
    int64_t input_bytes = 0;  // rows, and tables behind them
    int64_t output_bytes = 0;
  };
  // What a slot takes of the device's memory.
  static int64_t DeviceBytes(const Options& options);
  // Errors: RESOURCE_EXHAUSTED where there is no memory for it;
  // FAILED_PRECONDITION where cuBLAS is wanted and missing; INTERNAL.
  static absl::StatusOr<std::unique_ptr<BatchSlot>> Create(
      const Options& options);

  // Rows to come from `input`, pinned, and outputs to go to `output`.
  struct Batch {
    DType dtype = DType::kBF16;
    FfnTables tables;
    int64_t tables_at = 0;  // behind the rows, in bytes
    const std::byte* input = nullptr;
    std::byte* output = nullptr;
    int64_t output_bytes = 0;
    bool is_small = false;  // there are no large tiles, and few rows
  };
  // Queues the way there, the kernels, and the way back.
  absl::Status Start(const Batch& batch);
  // Waits for the end of all that.
  absl::Status Await();
  // Of the last batch that was awaited.
  BatchTimes times() const;
  // Whether kernels of the last batch that was started are a graph.
  bool used_graph() const { return used_graph_; }

  // Waits whatever went wrong; rows on their way must not meet the next ones.
  void Quiesce();

 private:
  explicit BatchSlot(const Options& options) : options_(options) {}
  // Sets used_graph_.
  absl::Status LaunchKernels(const Batch& batch);

  const Options options_;
  CudaStream stream_;
  CudaEvent begun_, copied_, computed_, done_;
  DeviceBuffer input_;
  DeviceBuffer output_;
  DeviceBuffer workspace_;
  std::unique_ptr<GroupedGemm> gemm_;  // for weights in rows
  LaunchGraphs graphs_;
  bool used_graph_ = false;
};

}  // namespace expertmesh::expert
