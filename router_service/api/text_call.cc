#include "router_service/api/text_call.h"

#include <utility>

#include "absl/time/clock.h"
#include "router_service/api/response_fields.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {

TextCall* TextCall::Start(const Context& context, Method method,
                          const CallDeadline& deadline, absl::Status parsed,
                          size_t size, Answer answer,
                          grpc::ByteBuffer* response) {
  std::shared_ptr<TextCall> call(
      new TextCall(context, method, deadline, response));
  call->self_ = call;
  absl::Status status = std::move(parsed);
  if (status.ok()) {
    status = context.text_worker->Run(size, [call, answer = std::move(answer)] {
      if (!call->is_ended()) call->End(answer());
    });
  }
  if (!status.ok()) call->End(status);
  return call.get();
}

bool TextCall::is_ended() {
  MutexLock lock(&mutex_);
  return is_ended_;
}

void TextCall::End(absl::StatusOr<grpc::ByteBuffer> response) {
  {
    MutexLock lock(&mutex_);
    if (is_ended_) return;
    is_ended_ = true;
  }
  if (response.ok()) {
    *response_ = *std::move(response);
  } else {
    LogRefused(method_, /*request_id=*/"", response.status());
  }
  context_.metrics->Count(method_, response.status());
  Finish(ToGrpcStatus(response.status()));
}

void TextCall::OnCancel() { End(ClientGone(deadline_, absl::Now())); }

void TextCall::OnDone() { self_.reset(); }

}  // namespace expertmesh::router
