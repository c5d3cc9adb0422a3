#pragma once

// Builds, owns and drains everything in an expert service; the only class that
// knows all the others.

#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "expert_service/api/expert_service_impl.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/execution/expert_executor.h"
#include "expert_service/execution/slot_load.h"
#include "expert_service/expert_config.h"
#include "expert_service/expert_metrics.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "expert_service/weights/expert_contents.h"
#include "expert_service/weights/expert_weights.h"
#include "services/checkpoint/checkpoint.h"
#include "services/core/mutex.h"
#include "services/core/worker_pool.h"
#include "services/pack_cache/pack_cache.h"
#include "services/runtime/metrics.h"
#include "services/runtime/server_runtime.h"
#include "services/weights_transfer/weight_service_impl.h"
#include "services/weights_transfer/weight_source.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::expert {

// Used by one thread.
class ExpertServer {
 public:
  // Loads the experts, then serves. Requires a checked config.
  // Errors: one line that names the flag, file or tensor.
  static absl::StatusOr<std::unique_ptr<ExpertServer>> Start(
      const ExpertConfig& config);

  // What the ready file holds:
  // {"grpc":"127.0.0.1:41001","metrics":"http://127.0.0.1:41002/metrics",
  //  "pid":4711,"experts":"0-3"}
  std::string ReadyJson() const;

  // Tells health checks and routers that no new work is wanted, serves what
  // still comes until it has been quiet for a moment or the drain timeout is
  // over, answers what has been read, and ends all calls.
  void Drain();

 private:
  explicit ExpertServer(const ExpertConfig& config);

  absl::Status Load();
  // The checkpoint, and where it comes from.
  absl::Status OpenCheckpoint();
  // From the pack cache, or packed.
  absl::StatusOr<PackedExpert> LoadSlot(ExpertSlot slot,
                                        std::optional<WeightFormat> format,
                                        const std::stop_token& stop);
  // What the service announces, and the kernel, hold for all experts.
  absl::Status CheckFormat(ExpertSlot slot, const PackedExpert& expert) const;
  // Pulls a slot's tensors where there is no checkpoint, then packs it.
  absl::StatusOr<PackedExpert> PackSlot(ExpertSlot slot,
                                        std::optional<WeightFormat> format,
                                        const std::stop_token& stop);
  // What --experts names.
  absl::Status LoadFirst();
  absl::Status StartExecutor();
  absl::Status Serve();
  // Of the shapes and the type that all experts have.
  absl::Status CheckKernels() const;
  v1::EndpointState DescribeEndpoint() const;
  // Thread-safe; heeded as soon as there is a server.
  void SetHealth(bool serving);
  void AwaitQuiet(absl::Duration timeout) const;

  const ExpertConfig config_;
  Metrics registry_;
  ExpertMetrics metrics_;
  std::string expert_list_;                   // "0-3"
  WeightFormat format_ = WeightFormat::kF32;  // of the experts
  v1::EndpointState endpoint_;

  // Each needs those above it, so they end in the opposite order.
  WorkerPool pool_;
  std::unique_ptr<WeightSource> source_;  // null with a checkpoint folder
  std::unique_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<PackCache> pack_cache_;  // null: none
  std::unique_ptr<LiveWeights> weights_;
  std::unique_ptr<ExpertContents> contents_;
  std::unique_ptr<GroupedFfn> ffn_;
  std::unique_ptr<SlotLoad> load_;
  PayloadPool replies_;
  LinkReaders links_;
  ExpertQueue queue_;
  std::unique_ptr<ExpertExecutor> executor_;
  std::unique_ptr<ExpertServiceImpl> service_;
  std::unique_ptr<WeightServiceImpl> weight_service_;
  std::unique_ptr<GrpcServer> grpc_;
  Mutex health_mutex_;
  bool serving_ ABSL_GUARDED_BY(health_mutex_) = true;
  GrpcServer* listening_ ABSL_GUARDED_BY(health_mutex_) = nullptr;
  std::unique_ptr<MetricsServer> metrics_server_;
};

}  // namespace expertmesh::expert
