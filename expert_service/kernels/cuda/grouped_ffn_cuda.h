#pragma once

// GroupedFfn on a CUDA device.

#include <memory>

#include "absl/status/statusor.h"
#include "expert_service/kernels/cuda/cuda_backend.h"
#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "expert_service/kernels/grouped_ffn.h"

namespace expertmesh::expert {

struct GroupedFfnCudaOptions {
  int device = 0;
  FfnShape shape;
  int64_t max_rows = 0;    // of a batch
  int64_t max_groups = 0;  // likewise
  CudaMetrics metrics;
};

// What it takes of the device's memory.
int64_t GroupedFfnCudaBytes(const GroupedFfnCudaOptions& options);

// Takes CudaExperts of `shape`, and two batches at a time: a stream each, so
// that one's rows travel while the other's are computed. Everything is sized
// once; a batch costs one copy each way, and the waiting thread sleeps. Few
// rows in small groups are queued by one call, with room for up to half as many
// more, so that few forms of batches do.
// Errors: RESOURCE_EXHAUSTED where there is no memory for it; INTERNAL.
absl::StatusOr<std::unique_ptr<GroupedFfn>> MakeGroupedFfnCuda(
    const GroupedFfnCudaOptions& options);

}  // namespace expertmesh::expert
