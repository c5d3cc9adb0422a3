#pragma once

// A call's way to the engine, which Generate and Score have in common.

#include <memory>
#include <optional>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router_service/api/api_metrics.h"
#include "router_service/api/call_deadline.h"
#include "router_service/api/request_tracer.h"
#include "router_service/api/request_translator.h"
#include "router_service/api/text_worker.h"
#include "router_service/engine/engine.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Translates the request, on the text worker where it is long, and submits it;
// or ends the call with the error. A client that leaves before the engine has
// the request ends its call at once, even while it is being tokenized. Counts
// and logs each call once. Lives until gRPC, the text worker and the engine are
// all done with it.
class EngineCall : public TokenSink {
 public:
  struct Context {
    const RequestTranslator* translator;
    Engine* engine;
    TextWorker* text_worker;
    const ApiMetrics* metrics;
    const Clock* clock;
    const RequestTracer* tracer = nullptr;  // null: no request has a trace
  };
  // What gRPC says of a call beside its message.
  struct Origin {
    CallDeadline deadline;
    std::string traceparent;

    static Origin Of(const grpc::CallbackServerContext& context) {
      return {CallDeadline::Of(context), TraceparentOf(context)};
    }
  };

 protected:
  EngineCall(const Context& context, Method method, const Origin& origin)
      : context_(context),
        method_(method),
        deadline_(origin.deadline),
        trace_(context.tracer == nullptr
                   ? std::nullopt
                   : context.tracer->Begin(origin.traceparent)) {}

  // Called once, by the thread that made the call. `parsed` ends the call where
  // it is an error; `size` is that of the prompt, in bytes or token ids.
  void Begin(const std::shared_ptr<EngineCall>& self, absl::Status parsed,
             const std::string& request_id, size_t size);
  // The client is gone.
  void Leave();
  // gRPC is done with the call.
  void Release() { self_.reset(); }
  // Called when the engine has finished.
  void Account(const Sequence& sequence, FinishReason reason,
               const absl::Status& status) const;

  // The request, ready for the engine. Called once at most.
  virtual absl::StatusOr<SequenceRequest> Translate() = 0;
  // Ends a call of which the engine never hears. Called once at most.
  virtual void Refuse(const grpc::Status& status) = 0;

  const Context context_;

 private:
  enum class Stage { kTranslating, kSubmitted, kRefused };

  void Submit();
  // From kTranslating on; false where the client left meanwhile.
  bool Enter(Stage stage);
  void End(const absl::Status& status);
  // Empty: none.
  std::string trace_id() const {
    return trace_ ? trace_->context.trace_id.Hex() : "";
  }

  const Method method_;
  const CallDeadline deadline_;
  const std::optional<RequestTrace> trace_;
  std::shared_ptr<EngineCall> self_;  // gRPC's share
  std::string request_id_;            // for the log of a refusal

  Mutex mutex_;
  Stage stage_ ABSL_GUARDED_BY(mutex_) = Stage::kTranslating;
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t engine_id_ ABSL_GUARDED_BY(mutex_) = 0;  // 0: not submitted
};

}  // namespace expertmesh::router
