#pragma once

// The expert service's metrics: names, and who sets what.

#include "expert_service/api/expert_service_impl.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/execution/expert_executor.h"
#include "expert_service/kernels/cuda/cuda_backend.h"
#include "services/runtime/metrics.h"

namespace expertmesh::expert {

struct ExpertMetrics {
  // Registers every series. `metrics` outlives the result.
  explicit ExpertMetrics(expertmesh::Metrics& metrics);

  ExpertQueue::Metrics queue;
  ExpertExecutor::Metrics executor;
  ExpertServiceImpl::Metrics service;
  ExpertContents::Metrics contents;
};

// Registers those of batches on a CUDA device. `metrics` outlives the result.
CudaMetrics AddCudaMetrics(expertmesh::Metrics& metrics);

}  // namespace expertmesh::expert
