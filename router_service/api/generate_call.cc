#include "router_service/api/generate_call.h"

#include <algorithm>
#include <utility>

#include "router_service/api/raw_message.h"
#include "router_service/api/response_fields.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

void MoveFirst(int count,
               google::protobuf::RepeatedPtrField<v1::TokenLogprob>* from,
               google::protobuf::RepeatedPtrField<v1::TokenLogprob>* to) {
  for (int i = 0; i < count; ++i) to->Add()->Swap(from->Mutable(i));
  from->DeleteSubrange(0, count);
}

}  // namespace

GenerateCall* GenerateCall::Start(const Context& context,
                                  const EngineCall::Origin& origin,
                                  const grpc::ByteBuffer& bytes) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(context, origin));
  call->request_ = std::make_unique<v1::GenerateRequest>();
  const v1::GenerateRequest& request = *call->request_;
  absl::Status parsed = ParseMessage(bytes, call->request_.get());
  if (parsed.ok()) parsed = CheckTextSize(request.text());
  const size_t size = request.text().size() + request.token_ids().ids_size();
  // A copy: the request is gone once it is translated.
  const std::string request_id = request.request_id();
  call->Begin(call, std::move(parsed), request_id, size);
  return call.get();
}

absl::StatusOr<SequenceRequest> GenerateCall::Translate() {
  const std::unique_ptr<v1::GenerateRequest> request = std::move(request_);
  ASSIGN_OR_RETURN(SequenceRequest out,
                   context_.translator->Translate(*request));
  if (tokenizer_ != nullptr) {
    // The new text goes on where the prompt's ends, which decides about its
    // first space and about characters that the prompt left unfinished.
    detokenizer_.emplace(tokenizer_, /*skip_special=*/true);
    detokenizer_->Resume(out.prompt);
    stops_.emplace(context_.translator->StopStringsOf(*request));
  }
  MutexLock lock(&mutex_);
  request_id_ = out.request_id;
  return out;
}

bool GenerateCall::OnToken(const Sequence& sequence, int32_t token,
                           const TokenLogprob* logprob) {
  const std::vector<int32_t>& stop_ids = sequence.request.stop_ids;
  const bool is_stop_id =
      std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
  std::string text;
  // The token that ends a text is not part of it.
  if (detokenizer_ && !is_stop_id) {
    text = stops_->Push(detokenizer_->Push(token));
  }
  MutexLock lock(&mutex_);
  pending_.add_token_ids(static_cast<uint32_t>(token));
  pending_.mutable_text()->append(text);
  if (logprob != nullptr) *pending_.add_logprobs() = ToProto(*logprob);
  if (sequence.num_generated() == 1) {
    for (const TokenLogprob& prompt_logprob : sequence.prompt_logprobs) {
      *pending_.add_prompt_logprobs() = ToProto(prompt_logprob);
    }
  }
  expert_rows_ = sequence.expert_rows;
  has_pending_ = true;
  WriteIfIdle();
  return !stops_ || !stops_->found();
}

void GenerateCall::OnFinish(const Sequence& sequence, FinishReason reason,
                            const absl::Status& status) {
  Account(sequence, reason, status);
  std::string text;
  if (detokenizer_) {
    text = stops_->Push(detokenizer_->Flush());
    text += stops_->Flush();
  }
  MutexLock lock(&mutex_);
  is_ended_ = true;
  status_ = ToGrpcStatus(status);
  if (status.ok()) {
    pending_.mutable_text()->append(text);
    pending_.set_finish_reason(ToProto(reason));
    pending_.mutable_usage()->set_prompt_tokens(
        static_cast<uint32_t>(sequence.prompt_size()));
    pending_.mutable_usage()->set_generated_tokens(
        static_cast<uint32_t>(sequence.num_generated()));
    pending_.mutable_usage()->set_cached_tokens(
        static_cast<uint32_t>(sequence.num_cached));
    *pending_.mutable_timings() = TimingsOf(sequence, context_.clock->Now());
    *pending_.mutable_routing() = ToProto(sequence.routing);
    pending_.set_seed(sequence.request.sampling.seed);
    expert_rows_ = sequence.expert_rows;
    has_pending_ = true;
  }
  WriteIfIdle();
}

void GenerateCall::AddExpertCounts(v1::GenerateResponse* message) {
  reported_rows_.resize(expert_rows_.size(), 0);
  for (size_t slot = 0; slot < expert_rows_.size(); ++slot) {
    if (expert_rows_[slot] == reported_rows_[slot]) continue;
    v1::ExpertCount* count = message->add_expert_counts();
    count->set_layer(static_cast<uint32_t>(slot / num_experts_));
    count->set_expert_id(static_cast<uint32_t>(slot % num_experts_));
    count->set_rows(expert_rows_[slot] - reported_rows_[slot]);
    reported_rows_[slot] = expert_rows_[slot];
  }
}

bool GenerateCall::TakeMessage() {
  writing_.Clear();
  if (pending_.prompt_logprobs_size() > kMaxTokensPerMessage) {
    MoveFirst(kMaxTokensPerMessage, pending_.mutable_prompt_logprobs(),
              writing_.mutable_prompt_logprobs());
  } else if (pending_.token_ids_size() > kMaxTokensPerMessage) {
    // The text of these tokens comes with the others'.
    writing_.mutable_prompt_logprobs()->Swap(
        pending_.mutable_prompt_logprobs());
    writing_.mutable_token_ids()->Add(
        pending_.token_ids().begin(),
        pending_.token_ids().begin() + kMaxTokensPerMessage);
    pending_.mutable_token_ids()->ExtractSubrange(0, kMaxTokensPerMessage,
                                                  nullptr);
    if (pending_.logprobs_size() > 0) {
      MoveFirst(kMaxTokensPerMessage, pending_.mutable_logprobs(),
                writing_.mutable_logprobs());
    }
  } else {
    writing_.Swap(&pending_);
    has_pending_ = false;
    AddExpertCounts(&writing_);
  }
  writing_.set_request_id(request_id_);
  return !has_pending_;
}

void GenerateCall::WriteIfIdle() {
  if (is_writing_) return;
  if (!has_pending_) {
    if (is_ended_) Finish(status_);
    return;
  }
  is_writing_ = true;
  const bool is_all = TakeMessage();
  bytes_ = SerializeMessage(writing_);
  if (is_ended_ && is_all) {
    StartWriteAndFinish(&bytes_, grpc::WriteOptions(), status_);
  } else {
    StartWrite(&bytes_);
  }
}

void GenerateCall::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  is_writing_ = false;
  // A failed write means that the client is gone: OnCancel follows, and the
  // engine's OnFinish ends the call.
  if (!ok) has_pending_ = false;
  WriteIfIdle();
}

}  // namespace expertmesh::router
