#pragma once

// The expert service's metrics: names, and who sets what.

#include <memory>

#include "expert_service/api/expert_service_impl.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/execution/expert_executor.h"
#include "expert_service/kernels/cuda/cuda_backend.h"
#include "services/checkpoint/model_config.h"
#include "services/runtime/metrics.h"
#include "services/runtime/slot_rows_collector.h"

namespace expertmesh::expert {

struct ExpertMetrics {
  // Registers every series. `metrics` outlives the result.
  explicit ExpertMetrics(expertmesh::Metrics& metrics);

  ExpertQueue::Metrics queue;
  ExpertExecutor::Metrics executor;
  ExpertServiceImpl::Metrics service;
  ExpertContents::Metrics contents;
  prometheus::Counter* spans_dropped;
};

// With a warning in the log, for it may be many series.
std::shared_ptr<SlotRowsCollector> MakeSlotRowsCollector(
    const ModelConfig& config);

// Registers those of batches on a CUDA device. `metrics` outlives the result.
CudaMetrics AddCudaMetrics(expertmesh::Metrics& metrics);

}  // namespace expertmesh::expert
