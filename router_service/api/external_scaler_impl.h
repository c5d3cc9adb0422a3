#pragma once

// KEDA's externalscaler.ExternalScaler: how many replicas a pool should have.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "keda/externalscaler.grpc.pb.h"
#include "router_service/control/scale_monitor.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// One metric by pool, the desired number of replicas, with a target of one for
// each replica: as an average value it makes the autoscaler want that number. A
// pool is active while it should have any replica. Changes nothing anywhere.
// Thread-safe.
class ExternalScalerImpl final
    : public externalscaler::ExternalScaler::WithRawCallbackMethod_IsActive<
          externalscaler::ExternalScaler::WithRawCallbackMethod_StreamIsActive<
              externalscaler::ExternalScaler::
                  WithRawCallbackMethod_GetMetricSpec<
                      externalscaler::ExternalScaler::
                          WithRawCallbackMethod_GetMetrics<
                              externalscaler::ExternalScaler::Service>>>> {
 public:
  static constexpr char kMetricName[] = "expertmesh-desired-replicas";

  // `monitor` must outlive this.
  explicit ExternalScalerImpl(const ScaleMonitor* monitor);
  // Ends the streams and waits until gRPC has let go of them.
  ~ExternalScalerImpl() override;

  // Tells the streams what changed since the last time. Called after each
  // ScaleMonitor::Observe.
  void Publish();
  // Ends all streams, and new ones at once, with UNAVAILABLE.
  void EndStreams();

  grpc::ServerUnaryReactor* IsActive(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* StreamIsActive(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* GetMetricSpec(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetMetrics(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  class ActivityStream;

  // Replicas that the pool of a trigger should have.
  // Errors: INVALID_ARGUMENT naming the pools there are.
  absl::StatusOr<int> DesiredReplicas(
      const externalscaler::ScaledObjectRef& trigger) const;
  void Remove(ActivityStream* stream);

  const ScaleMonitor* const monitor_;
  Mutex mutex_;
  CondVar removed_;
  std::vector<std::shared_ptr<ActivityStream>> streams_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace expertmesh::router
