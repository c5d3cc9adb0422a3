#pragma once

// One Generate call: the engine's tokens become a client's stream (stop 9).

#include <memory>
#include <optional>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "expertmesh/v1/generation.pb.h"
#include "router_service/api/engine_call.h"
#include "router_service/api/stop_strings.h"
#include "services/core/mutex.h"
#include "services/text/tokenizer.h"

namespace expertmesh::router {

// The engine pushes; gRPC pulls. A message is written while none is under way,
// and tokens that come meanwhile wait and travel together, kMaxTokensPerMessage
// at a time: a slow reader costs memory of at most max_tokens, and never a
// step.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public EngineCall {
 public:
  struct Context {
    EngineCall::Context call;
    const Tokenizer* tokenizer;  // null: no text
    int64_t num_experts;
  };

  // With twenty log-probabilities each, well below the 4 MiB that clients
  // accept by default.
  static constexpr int kMaxTokensPerMessage = 2048;

  // The result belongs to gRPC.
  static GenerateCall* Start(const Context& context,
                             const EngineCall::Origin& origin,
                             const grpc::ByteBuffer& bytes);

  // TokenSink, on the engine's thread.
  bool OnToken(const Sequence& sequence, int32_t token,
               const TokenLogprob* logprob) override;
  void OnFinish(const Sequence& sequence, FinishReason reason,
                const absl::Status& status) override;

  // gRPC's events.
  void OnWriteDone(bool ok) override;
  void OnCancel() override { Leave(); }
  void OnDone() override { Release(); }

 private:
  GenerateCall(const Context& context, const EngineCall::Origin& origin)
      : EngineCall(context.call, Method::kGenerate, origin),
        tokenizer_(context.tokenizer),
        num_experts_(context.num_experts) {}

  absl::StatusOr<SequenceRequest> Translate() override;
  void Refuse(const grpc::Status& status) override { Finish(status); }
  // Moves the next message, or a part of it that is not too large, from
  // pending_ to writing_. Returns whether that was all.
  bool TakeMessage() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What experts did since the last message.
  void AddExpertCounts(v1::GenerateResponse* message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Tokenizer* const tokenizer_;
  const int64_t num_experts_;
  std::unique_ptr<v1::GenerateRequest> request_;  // until it is translated

  // Made by Translate, then the engine thread's own. Without a tokenizer there
  // is no text, and nothing to stop at.
  std::optional<StreamingDetokenizer> detokenizer_;
  std::optional<StopStrings> stops_;

  Mutex mutex_;
  v1::GenerateResponse pending_ ABSL_GUARDED_BY(mutex_);  // the next message
  // Expert rows of the request so far, and those in earlier messages.
  std::vector<uint32_t> expert_rows_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> reported_rows_ ABSL_GUARDED_BY(mutex_);
  std::string request_id_ ABSL_GUARDED_BY(mutex_);
  bool has_pending_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_ended_ ABSL_GUARDED_BY(mutex_) = false;  // status_ is final
  grpc::Status status_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateResponse writing_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer bytes_;  // of writing_; gRPC's until OnWriteDone
};

}  // namespace expertmesh::router
