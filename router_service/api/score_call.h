#pragma once

// One Score call: a prompt run through the model for its log-probabilities.

#include <memory>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "expertmesh/v1/generation.pb.h"
#include "router_service/api/api_metrics.h"
#include "router_service/engine/engine.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Lives until both gRPC and the engine are done with it.
class ScoreCall final : public grpc::ServerUnaryReactor, public TokenSink {
 public:
  struct Context {
    Engine* engine;
    const ApiMetrics* metrics;
    const Clock* clock;
  };

  // Submits the request, or ends the call with `request`'s error. `response`
  // is gRPC's until the call ends; the result belongs to gRPC.
  static ScoreCall* Start(const Context& context, absl::Time deadline,
                          absl::StatusOr<SequenceRequest> request,
                          v1::ScoreResponse* response);

  bool OnToken(const Sequence& sequence, int32_t token,
               const TokenLogprob* logprob) override;
  void OnFinish(const Sequence& sequence, FinishReason reason,
                const absl::Status& status) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  ScoreCall(const Context& context, absl::Time deadline,
            v1::ScoreResponse* response)
      : context_(context), deadline_(deadline), response_(response) {}

  const Context context_;
  const absl::Time deadline_;
  v1::ScoreResponse* const response_;
  std::shared_ptr<ScoreCall> self_;
  Mutex mutex_;
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t engine_id_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace expertmesh::router
