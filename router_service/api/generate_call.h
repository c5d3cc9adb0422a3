#pragma once

// One Generate call: the engine's tokens become a client's stream (stop 9).

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/base/thread_annotations.h"
#include "expertmesh/v1/generation.pb.h"
#include "router_service/api/api_metrics.h"
#include "router_service/api/stop_strings.h"
#include "router_service/engine/engine.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"
#include "services/text/tokenizer.h"

namespace expertmesh::router {

// The engine pushes; gRPC pulls. A message is written while none is under way,
// and tokens that come meanwhile wait and travel together, kMaxTokensPerMessage
// at a time: a slow reader costs memory of at most max_tokens, and never a
// step. Lives until both gRPC and the engine are done with it.
class GenerateCall final
    : public grpc::ServerWriteReactor<v1::GenerateResponse>,
      public TokenSink {
 public:
  struct Context {
    Engine* engine;
    const Tokenizer* tokenizer;  // null: no text
    const ApiMetrics* metrics;
    const Clock* clock;
    int64_t num_experts;
  };

  // With twenty log-probabilities each, well below the 4 MiB that clients
  // accept by default.
  static constexpr int kMaxTokensPerMessage = 2048;

  // Submits the request, or ends the call with `request`'s error. The result
  // belongs to gRPC.
  static GenerateCall* Start(const Context& context, absl::Time deadline,
                             absl::StatusOr<SequenceRequest> request,
                             std::vector<std::string> stops);

  // TokenSink, on the engine's thread.
  bool OnToken(const Sequence& sequence, int32_t token,
               const TokenLogprob* logprob) override;
  void OnFinish(const Sequence& sequence, FinishReason reason,
                const absl::Status& status) override;

  // gRPC's events.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateCall(const Context& context, absl::Time deadline,
               std::vector<std::string> stops);

  void Submit(absl::StatusOr<SequenceRequest> request);
  // Moves the next message, or a part of it that is not too large, from
  // pending_ to writing_. Returns whether that was all.
  bool TakeMessage() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What experts did since the last message.
  void AddExpertCounts(v1::GenerateResponse* message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Context context_;
  const absl::Time deadline_;
  std::shared_ptr<GenerateCall> self_;  // gRPC's share; gone with OnDone

  // The engine thread's own.
  std::optional<StreamingDetokenizer> detokenizer_;
  StopStrings stops_;

  Mutex mutex_;
  v1::GenerateResponse pending_ ABSL_GUARDED_BY(mutex_);  // the next message
  // Expert rows of the request so far, and those in earlier messages.
  std::vector<uint32_t> expert_rows_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint32_t> reported_rows_ ABSL_GUARDED_BY(mutex_);
  std::string request_id_ ABSL_GUARDED_BY(mutex_);
  bool has_pending_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_ended_ ABSL_GUARDED_BY(mutex_) = false;  // status_ is final
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t engine_id_ ABSL_GUARDED_BY(mutex_) = 0;  // 0: not submitted
  grpc::Status status_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateResponse writing_;  // gRPC's until OnWriteDone
};

}  // namespace expertmesh::router
