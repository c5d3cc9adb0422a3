#include "router_service/api/score_call.h"

#include <cmath>
#include <utility>

#include "router_service/api/response_fields.h"
#include "services/wire/status_codec.h"

namespace expertmesh::router {

ScoreCall* ScoreCall::Start(const Context& context, absl::Time deadline,
                            absl::StatusOr<SequenceRequest> request,
                            v1::ScoreResponse* response) {
  std::shared_ptr<ScoreCall> call(new ScoreCall(context, deadline, response));
  call->self_ = call;
  absl::Status status = request.status();
  if (status.ok()) {
    const absl::StatusOr<uint64_t> id =
        context.engine->Submit(*std::move(request), call);
    status = id.status();
    if (status.ok()) {
      MutexLock lock(&call->mutex_);
      call->engine_id_ = *id;
      if (call->is_cancelled_) {
        context.engine->Cancel(*id, ClientGone(deadline));
      }
      return call.get();
    }
  }
  LogRefused("Score", status);
  context.metrics->Count(Method::kScore, status);
  call->Finish(ToGrpcStatus(status));
  return call.get();
}

bool ScoreCall::OnToken(const Sequence&, int32_t, const TokenLogprob*) {
  return true;  // a request of max_tokens 0 has none
}

void ScoreCall::OnFinish(const Sequence& sequence, FinishReason,
                         const absl::Status& status) {
  context_.metrics->Count(Method::kScore, status);
  LogFinished("Score", sequence, status, context_.clock->Now());
  if (status.ok()) {
    response_->set_request_id(sequence.request.request_id);
    double sum = 0;
    for (const int32_t id : sequence.request.prompt) {
      response_->add_token_ids(static_cast<uint32_t>(id));
    }
    for (const TokenLogprob& logprob : sequence.prompt_logprobs) {
      response_->add_logprobs(logprob.logprob);
      sum += logprob.logprob;
    }
    if (!sequence.prompt_logprobs.empty()) {
      response_->set_perplexity(std::exp(
          -sum / static_cast<double>(sequence.prompt_logprobs.size())));
    }
    *response_->mutable_routing() = ToProto(sequence.routing);
  }
  Finish(ToGrpcStatus(status));
}

void ScoreCall::OnCancel() {
  MutexLock lock(&mutex_);
  is_cancelled_ = true;
  if (engine_id_ != 0) {
    context_.engine->Cancel(engine_id_, ClientGone(deadline_));
  }
}

void ScoreCall::OnDone() { self_.reset(); }

}  // namespace expertmesh::router
