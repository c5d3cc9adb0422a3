#include "router_service/api/score_call.h"

#include <cmath>
#include <utility>

#include "router_service/api/raw_message.h"
#include "router_service/api/response_fields.h"

namespace expertmesh::router {

ScoreCall* ScoreCall::Start(const Context& context,
                            const EngineCall::Origin& origin,
                            const grpc::ByteBuffer& bytes,
                            grpc::ByteBuffer* response) {
  std::shared_ptr<ScoreCall> call(new ScoreCall(context, origin, response));
  call->request_ = std::make_unique<v1::ScoreRequest>();
  const v1::ScoreRequest& request = *call->request_;
  absl::Status parsed = ParseMessage(bytes, call->request_.get());
  if (parsed.ok()) parsed = CheckTextSize(request.text());
  const size_t size = request.text().size() + request.token_ids().ids_size();
  // A copy: the request is gone once it is translated.
  const std::string request_id = request.request_id();
  call->Begin(call, std::move(parsed), request_id, size);
  return call.get();
}

absl::StatusOr<SequenceRequest> ScoreCall::Translate() {
  const std::unique_ptr<v1::ScoreRequest> request = std::move(request_);
  return context_.translator->Translate(*request);
}

bool ScoreCall::OnToken(const Sequence&, int32_t, const TokenLogprob*) {
  return true;  // a request of max_tokens 0 has none
}

void ScoreCall::OnFinish(const Sequence& sequence, FinishReason reason,
                         const absl::Status& status) {
  Account(sequence, reason, status);
  if (status.ok()) {
    v1::ScoreResponse response;
    response.set_request_id(sequence.request.request_id);
    double sum = 0;
    for (const int32_t id : sequence.request.prompt) {
      response.add_token_ids(static_cast<uint32_t>(id));
    }
    for (const TokenLogprob& logprob : sequence.prompt_logprobs) {
      response.add_logprobs(logprob.logprob);
      sum += logprob.logprob;
    }
    if (!sequence.prompt_logprobs.empty()) {
      response.set_perplexity(std::exp(
          -sum / static_cast<double>(sequence.prompt_logprobs.size())));
    }
    *response.mutable_routing() = ToProto(sequence.routing);
    *response_ = SerializeMessage(response);
  }
  Finish(ToGrpcStatus(status));
}

}  // namespace expertmesh::router
