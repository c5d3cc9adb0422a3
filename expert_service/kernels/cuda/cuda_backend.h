#pragma once

// What an expert service asks of a CUDA device; the same in binaries without
// CUDA, which open none.

#include <prometheus/counter.h>
#include <prometheus/histogram.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "services/linalg/weight_format.h"

namespace expertmesh::expert {

// Of batches; all or none of the first four may be absent.
struct CudaMetrics {
  prometheus::Histogram* kernel_seconds = nullptr;  // by the device's clock
  prometheus::Histogram* copy_in_seconds = nullptr;
  prometheus::Histogram* copy_out_seconds = nullptr;
  prometheus::Counter* graph_launches = nullptr;  // batches queued as one
  prometheus::Histogram* batch_rows = nullptr;    // of each
};

struct CudaBackendOptions {
  int device = 0;
  double memory_fraction = 0.9;  // of the device's, for all below
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  WeightFormat format = WeightFormat::kBF16;  // of all experts
  // bf16 experts: products of many rows by cuBLAS, so that a row's bits depend
  // on the number of rows.
  bool is_fast = false;
  int64_t max_rows = 0;    // of a batch
  int64_t max_groups = 0;  // likewise
  CudaMetrics metrics;
};

// The home of experts on a device. Loading is thread-safe. Outlives the kernel,
// not necessarily the experts.
class CudaBackend {
 public:
  virtual ~CudaBackend() = default;

  // What one expert takes, and all may take together, in pieces as the device
  // hands them out.
  virtual int64_t expert_bytes() const = 0;
  virtual int64_t budget_bytes() const = 0;

  // Whether experts come from tensors as they are; else from packed ones.
  virtual bool takes_tensors() const = 0;
  // Errors: RESOURCE_EXHAUSTED where the device has no memory left, INTERNAL.
  virtual absl::StatusOr<std::shared_ptr<const LoadedExpert>> Load(
      const ExpertTensors& tensors) = 0;
  virtual absl::StatusOr<std::shared_ptr<const LoadedExpert>> Load(
      const PackedExpert& expert) = 0;

  // For the experts that Load gives. One at a time.
  virtual GroupedFfn& ffn() = 0;
};

// Takes the kernel's share of the device's memory at once, and tries the
// device's arithmetic. Errors:
// FAILED_PRECONDITION holding "no CUDA device" in binaries without CUDA, or
// naming --numerics where cuBLAS is missing;
// RESOURCE_EXHAUSTED naming --max-batch-rows where workspaces do not fit;
// INTERNAL.
absl::StatusOr<std::unique_ptr<CudaBackend>> OpenCudaBackend(
    const CudaBackendOptions& options);

}  // namespace expertmesh::expert
