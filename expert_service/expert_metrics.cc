#include "expert_service/expert_metrics.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "services/core/log.h"

namespace expertmesh::expert {

ExpertMetrics::ExpertMetrics(expertmesh::Metrics& metrics) {
  queue.queue_rows =
      &metrics.Gauge("expertmesh_expert_queue_rows", "Rows waiting to run.");
  queue.queue_limit_rows =
      &metrics.Gauge("expertmesh_expert_queue_limit_rows",
                     "Rows that may wait; more are refused.");
  executor.batch_rows = &metrics.Histogram(
      "expertmesh_expert_batch_rows",
      "Rows computed together, after merging, of one layer and type.",
      CountBuckets());
  executor.forward_seconds = &metrics.Histogram(
      "expertmesh_expert_forward_duration_seconds",
      "Time to compute one merged batch, in seconds.", StepSecondsBuckets());
  executor.queue_seconds = &metrics.Histogram(
      "expertmesh_expert_queue_duration_seconds",
      "Time a batch waited before it ran, in seconds.", StepSecondsBuckets());
  executor.rows =
      &metrics.Counter("expertmesh_expert_rows_total", "Rows computed.");
  // CODE_OK → "ok"; nothing is ever answered with CODE_UNSPECIFIED.
  for (int code = v1::CODE_OK; code < v1::Code_ARRAYSIZE; ++code) {
    const std::string& name = v1::Code_Name(static_cast<v1::Code>(code));
    service.batches[code] = &metrics.Counter(
        "expertmesh_expert_batches_total", "Batches answered, by code.",
        {{"code", absl::AsciiStrToLower(absl::StripPrefix(name, "CODE_"))}});
  }
  service.streams = &metrics.Gauge("expertmesh_expert_streams",
                                   "Streams of routers open now.");
  service.bytes_in_flight =
      &metrics.Gauge("expertmesh_expert_in_flight_bytes",
                     "Memory of batches and answers not sent yet, in bytes.");
  contents.loaded_slots =
      &metrics.Gauge("expertmesh_expert_loaded_slots",
                     "Experts loaded, counted in every layer.");
  contents.memory_bytes =
      &metrics.Gauge("expertmesh_expert_memory_bytes",
                     "Memory of packed expert weights, in bytes.");
  spans_dropped = &metrics.Counter(
      "expertmesh_expert_trace_spans_dropped_total",
      "Spans that were not written because the file was too slow, or broken.");
}

std::shared_ptr<SlotRowsCollector> MakeSlotRowsCollector(
    const ModelConfig& config) {
  std::vector<int64_t> layers;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.layers[layer].is_moe) layers.push_back(layer);
  }
  auto collector = std::make_shared<SlotRowsCollector>(
      "expertmesh_expert_slot_rows_total",
      "Rows computed for each expert of each layer.", std::move(layers),
      config.num_experts);
  Log(LogLevel::kWarning, "--metrics-expert-detail=full: a series per expert",
      {{"series", collector->num_series()}});
  return collector;
}

CudaMetrics AddCudaMetrics(expertmesh::Metrics& metrics) {
  const auto copy_seconds = [&metrics](const char* direction) {
    return &metrics.Histogram(
        "expertmesh_expert_device_copy_duration_seconds",
        "Time to copy a batch to the device or back, in seconds.",
        StepSecondsBuckets(), {{"direction", direction}});
  };
  CudaMetrics cuda;
  cuda.kernel_seconds =
      &metrics.Histogram("expertmesh_expert_device_kernel_duration_seconds",
                         "Time of a batch's kernels on the device, in seconds.",
                         StepSecondsBuckets());
  cuda.copy_in_seconds = copy_seconds("in");
  cuda.copy_out_seconds = copy_seconds("out");
  cuda.graph_launches = &metrics.Counter(
      "expertmesh_expert_device_graph_launches_total",
      "Batches that went to the device as a CUDA graph, by one call.");
  cuda.batch_rows = &metrics.Histogram(
      "expertmesh_expert_device_batch_rows",
      "Rows that went to the device in one batch.", CountBuckets());
  return cuda;
}

}  // namespace expertmesh::expert
