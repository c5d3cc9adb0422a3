#pragma once

// Builds, owns and drains everything in an expert service; the only class that
// knows all the others.

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "expert_service/api/expert_service_impl.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/device/device_choice.h"
#include "expert_service/execution/expert_executor.h"
#include "expert_service/execution/slot_load.h"
#include "expert_service/expert_config.h"
#include "expert_service/expert_metrics.h"
#include "expert_service/kernels/cuda/cuda_backend.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "expert_service/weights/expert_contents.h"
#include "expert_service/weights/expert_weights.h"
#include "expert_service/weights/slot_source.h"
#include "services/core/mutex.h"
#include "services/core/worker_pool.h"
#include "services/runtime/metrics.h"
#include "services/runtime/server_runtime.h"
#include "services/runtime/tls_identity.h"
#include "services/weights_transfer/weight_service_impl.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::expert {

// Used by one thread.
class ExpertServer {
 public:
  // Chooses the device, loads the experts, then serves. Requires a checked
  // config. `on_fault` is told, on any thread, that the device is lost while it
  // serves: all batches end with fault() then, and only a new process helps.
  // `find` looks for a CUDA device by its index.
  // Errors: one line that names the flag, device, file or tensor.
  static absl::StatusOr<std::unique_ptr<ExpertServer>> Start(
      const ExpertConfig& config, std::function<void()> on_fault,
      absl::FunctionRef<absl::StatusOr<CudaDevice>(int)> find = FindCudaDevice);

  ~ExpertServer();

  // What the ready file holds:
  // {"grpc":"127.0.0.1:41001","metrics":"http://127.0.0.1:41002/metrics",
  //  "pid":4711,"experts":"0-3"}
  std::string ReadyJson() const;

  // Tells health checks and routers that no new work is wanted, serves what
  // still comes until it has been quiet for a moment or the drain timeout is
  // over, answers what has been read, and ends all calls.
  void Drain();

  // An error once the device is lost.
  absl::Status fault() const;

 private:
  ExpertServer(const ExpertConfig& config, const Device& device,
               std::function<void()> on_fault);

  absl::Status LoadTls();
  absl::Status Load();
  absl::Status OpenSlots();
  // The kernel's device, where it is not the CPU.
  absl::Status OpenDevice();
  // For the kernel. What goes wrong with the device while it serves, loses it.
  absl::StatusOr<ExpertWeights::Expert> LoadSlot(ExpertSlot slot,
                                                 const std::stop_token& stop);
  absl::StatusOr<ExpertWeights::Expert> LoadToDevice(
      ExpertSlot slot, const std::stop_token& stop);
  // What --experts names.
  absl::Status LoadFirst();
  absl::Status StartExecutor();
  // Heeds the first fault. Thread-safe.
  void LoseDevice(const absl::Status& fault);
  absl::Status OpenTraceFile();
  void CountSlots();  // where each is to have a series
  absl::Status Serve();
  WeightFormat format() const { return slots_->format(); }  // of all experts
  // Of the shapes and the type that all experts have.
  absl::Status CheckKernels() const;
  v1::EndpointState DescribeEndpoint() const;
  // Thread-safe; heeded as soon as there is a server. Never healthy again with
  // a fault.
  void SetHealth(bool serving);
  void AwaitQuiet(absl::Duration timeout) const;

  const ExpertConfig config_;
  const Device device_;
  const std::function<void()> on_fault_;
  Metrics registry_;
  ExpertMetrics metrics_;
  std::string expert_list_;  // "0-3"
  v1::EndpointState endpoint_;

  // Each needs those above it, so they end in the opposite order.
  std::unique_ptr<TlsIdentity> tls_;  // null: plain
  WorkerPool pool_;
  std::unique_ptr<SlotSource> slots_;
  std::unique_ptr<CudaBackend> cuda_;  // null: the CPU computes
  std::unique_ptr<LiveWeights> weights_;
  std::unique_ptr<ExpertContents> contents_;
  std::unique_ptr<GroupedFfn> cpu_ffn_;  // null with a device
  std::unique_ptr<SlotLoad> load_;
  PayloadPool replies_;
  LinkReaders links_;
  ExpertQueue queue_;
  mutable Mutex health_mutex_;
  absl::Status fault_ ABSL_GUARDED_BY(health_mutex_);
  bool serving_ ABSL_GUARDED_BY(health_mutex_) = true;
  GrpcServer* listening_ ABSL_GUARDED_BY(health_mutex_) = nullptr;
  std::unique_ptr<TraceFile> trace_file_;  // null: batches leave no spans
  std::shared_ptr<SlotRowsCollector> slot_rows_;  // null: not by expert
  std::unique_ptr<ExpertExecutor> executor_;
  std::unique_ptr<ExpertServiceImpl> service_;
  std::unique_ptr<WeightServiceImpl> weight_service_;
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<MetricsServer> metrics_server_;
};

}  // namespace expertmesh::expert
