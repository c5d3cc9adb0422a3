#pragma once

// expertmesh.expert.v1.ExpertService: validates, delegates, converts.

#include <grpcpp/support/server_callback.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "expert_service/api/forward_stream.h"
#include "expert_service/api/order_calls.h"
#include "expert_service/api/order_thread.h"
#include "expert_service/api/state_broadcaster.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/execution/slot_load.h"
#include "expert_service/weights/expert_contents.h"
#include "expert_service/weights/expert_weights.h"
#include "expertmesh/expert/v1/expert.grpc.pb.h"
#include "services/core/mutex.h"

namespace expertmesh::expert {

// Forward is served in its raw form, over bytes: the generated class would copy
// every activation twice. Thread-safe.
class ExpertServiceImpl final
    : public v1::ExpertService::WithRawCallbackMethod_Forward<
          v1::ExpertService::WithCallbackMethod_WatchState<
              v1::ExpertService::WithCallbackMethod_LoadExperts<
                  v1::ExpertService::WithCallbackMethod_UnloadExperts<
                      v1::ExpertService::WithCallbackMethod_Drain<
                          v1::ExpertService::Service>>>>> {
 public:
  struct Options {
    // What does not change while the service runs; names the model's shape.
    v1::EndpointState endpoint;
    size_t max_batches_per_stream = 64;
    int64_t max_streams = 256;                         // of Forward
    uint64_t max_bytes_in_flight = uint64_t{1} << 30;  // over all streams
    size_t max_waiting_orders = 64;
    // The service began or ceased to ask for no new work.
    std::function<void(bool draining)> on_drain = [](bool) {};
  };
  // All outlive the service.
  struct Parts {
    ExpertQueue* queue = nullptr;
    const SlotLoad* load = nullptr;
    const LiveWeights* weights = nullptr;
    ExpertContents* contents = nullptr;
    LinkReaders* links = nullptr;  // null: routers get no local links
    TraceFile* traces = nullptr;   // null: batches leave no spans
  };
  struct Metrics {
    // By Code; null where not counted.
    std::array<prometheus::Counter*, v1::Code_ARRAYSIZE> batches = {};
    prometheus::Gauge* streams = nullptr;
    prometheus::Gauge* bytes_in_flight = nullptr;
  };

  ExpertServiceImpl(const Options& options, const Metrics& metrics,
                    const Parts& parts);
  // Waits for its streams; requires that gRPC takes no more calls and that the
  // executor still runs or has answered everything.
  ~ExpertServiceImpl() override;

  // Tells every watcher that no new work is wanted, for good: Drain does not
  // take it back. Batches that come all the same are still served.
  void AnnounceDrain();
  // Answers what has been read and ends all streams; new ones end at once.
  // Gives up orders.
  void EndStreams();
  // The longest time between two states that a watcher asked for; 0 without
  // watchers.
  absl::Duration LongestWatchInterval() const {
    return watchers_.LongestInterval();
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Forward(
      grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<v1::EndpointState>* WatchState(
      grpc::CallbackServerContext* context,
      const v1::WatchStateRequest* request) override;
  grpc::ServerWriteReactor<v1::LoadExpertsProgress>* LoadExperts(
      grpc::CallbackServerContext* context,
      const v1::LoadExpertsRequest* request) override;
  grpc::ServerUnaryReactor* UnloadExperts(
      grpc::CallbackServerContext* context,
      const v1::UnloadExpertsRequest* request,
      v1::UnloadExpertsResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  enum class DrainState { kNone, kOrdered, kForGood };

  // Errors: FAILED_PRECONDITION once it is for good.
  absl::Status SetDrain(DrainState state);
  void FillState(v1::EndpointState* state) const;
  // Counts a stream that begins. Errors: RESOURCE_EXHAUSTED.
  absl::Status TakeStream();
  void OnStreamGone();

  const Options options_;
  ForwardOptions forward_;
  const Metrics metrics_;
  const Parts parts_;
  ByteBudget bytes_;
  std::atomic<bool> draining_{false};
  Mutex drain_mutex_;  // held while watchers and on_drain are told
  DrainState drain_ ABSL_GUARDED_BY(drain_mutex_) = DrainState::kNone;

  Mutex mutex_;
  CondVar stream_gone_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t live_streams_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::weak_ptr<ForwardStream>> streams_ ABSL_GUARDED_BY(mutex_);

  StateBroadcaster watchers_;
  OrderParts order_parts_;
  OrderThread orders_;
};

}  // namespace expertmesh::expert
