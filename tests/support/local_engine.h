#pragma once

// An engine over a local model, and a sink to wait on.

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "router_service/engine/engine.h"
#include "services/core/mutex.h"
#include "services/runtime/metrics.h"
#include "tests/support/local_model.h"

namespace expertmesh::testing {

// Records what a request got. Thread-safe.
class RecordingSink final : public router::TokenSink {
 public:
  struct Record {
    std::vector<int32_t> tokens;
    std::vector<router::TokenLogprob> logprobs;
    std::vector<router::TokenLogprob> prompt_logprobs;
    std::vector<uint32_t> expert_rows;
    router::RoutingAccount routing;
    int64_t cached_tokens = 0;
    router::FinishReason reason;
    absl::Status status;
  };

  // The request ends (kStopped) after this many tokens; 0: never.
  void StopAfter(size_t tokens) { stop_after_ = tokens; }

  // Blocks until the request has ended.
  Record Await();
  // Blocks until it has this many tokens, or has ended.
  void AwaitTokens(size_t count);

  bool OnToken(const router::Sequence& sequence, int32_t token,
               const router::TokenLogprob* logprob) override;
  void OnFinish(const router::Sequence& sequence, router::FinishReason reason,
                const absl::Status& status) override;

 private:
  size_t stop_after_ = 0;
  Mutex mutex_;
  CondVar changed_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  Record record_ ABSL_GUARDED_BY(mutex_);
};

// All log-probabilities of a record, as text that is equal where their bits
// are. Each is of a softmax over all logits, so equal bits of 21 of them per
// position mean equal logits.
std::string Bits(const RecordingSink::Record& record);

struct LocalEngineOptions {
  LocalModelOptions model;
  router::EngineOptions engine;  // max_context_tokens from the model
};

// Members end in the right order: the engine first.
struct LocalEngine {
  static absl::StatusOr<std::unique_ptr<LocalEngine>> Load(
      const std::string& directory, const LocalEngineOptions& options);

  std::shared_ptr<RecordingSink> Submit(router::SequenceRequest request);
  // Submits and awaits.
  RecordingSink::Record Run(router::SequenceRequest request);

  std::unique_ptr<LocalModel> model;
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<router::Engine> engine;
};

}  // namespace expertmesh::testing
