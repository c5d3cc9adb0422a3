#pragma once

// A unary call that needs the tokenizer alone.

#include <functional>
#include <memory>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router_service/api/api_metrics.h"
#include "router_service/api/call_deadline.h"
#include "router_service/api/text_worker.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Answered where it arrives or, if its text is long, on the text worker. A
// client that leaves ends its call at once. Lives until both gRPC and the
// worker are done with it.
class TextCall final : public grpc::ServerUnaryReactor {
 public:
  // The response's bytes.
  using Answer = std::function<absl::StatusOr<grpc::ByteBuffer>()>;
  struct Context {
    TextWorker* text_worker;
    const ApiMetrics* metrics;
  };

  // Ends the call with `parsed` where it is an error. `size`, in bytes of text
  // or token ids, says how long `answer` takes. `response` is gRPC's until the
  // call ends; the result belongs to gRPC.
  static TextCall* Start(const Context& context, Method method,
                         const CallDeadline& deadline, absl::Status parsed,
                         size_t size, Answer answer,
                         grpc::ByteBuffer* response);

  void OnCancel() override;
  void OnDone() override;

 private:
  TextCall(const Context& context, Method method, const CallDeadline& deadline,
           grpc::ByteBuffer* response)
      : context_(context),
        method_(method),
        deadline_(deadline),
        response_(response) {}

  bool is_ended();
  // The first end counts.
  void End(absl::StatusOr<grpc::ByteBuffer> response);

  const Context context_;
  const Method method_;
  const CallDeadline deadline_;
  grpc::ByteBuffer* const response_;
  std::shared_ptr<TextCall> self_;  // gRPC's share
  Mutex mutex_;
  bool is_ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace expertmesh::router
