#pragma once

// expertmesh.expert.v1.ExpertService: validates, delegates, converts.

#include <grpcpp/support/server_callback.h>
#include <prometheus/counter.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "expert_service/api/forward_stream.h"
#include "expert_service/api/state_broadcaster.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/execution/slot_load.h"
#include "expertmesh/expert/v1/expert.grpc.pb.h"
#include "services/core/mutex.h"

namespace expertmesh::expert {

// Forward is served in its raw form, over bytes: the generated class would copy
// every activation twice. Thread-safe.
class ExpertServiceImpl final
    : public v1::ExpertService::WithRawCallbackMethod_Forward<
          v1::ExpertService::WithCallbackMethod_WatchState<
              v1::ExpertService::Service>> {
 public:
  struct Options {
    // What does not change while the service runs; names the model's shape.
    v1::EndpointState endpoint;
    size_t max_batches_per_stream = 64;
  };
  struct Metrics {
    // By Code; null where not counted.
    std::array<prometheus::Counter*, v1::Code_ARRAYSIZE> batches = {};
  };

  // `queue` and `load` outlive the service.
  ExpertServiceImpl(const Options& options, const Metrics& metrics,
                    ExpertQueue* queue, const SlotLoad* load);
  // Waits for its streams; requires that gRPC takes no more calls and that the
  // executor still runs or has answered everything.
  ~ExpertServiceImpl() override;

  // Tells every watcher that no new work is wanted. Batches that come all the
  // same are still served.
  void AnnounceDrain();
  // Answers what has been read and ends all streams; new ones end at once.
  void EndStreams();

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Forward(
      grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<v1::EndpointState>* WatchState(
      grpc::CallbackServerContext* context,
      const v1::WatchStateRequest* request) override;

 private:
  void FillState(v1::EndpointState* state) const;
  void OnStreamGone();

  const Options options_;
  ForwardOptions forward_;
  ExpertQueue* const queue_;
  const SlotLoad* const load_;
  std::atomic<bool> draining_{false};

  Mutex mutex_;
  CondVar stream_gone_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  int live_streams_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::weak_ptr<ForwardStream>> streams_ ABSL_GUARDED_BY(mutex_);

  StateBroadcaster watchers_;
};

}  // namespace expertmesh::expert
