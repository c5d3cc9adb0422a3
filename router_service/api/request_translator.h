#pragma once

// A client's GenerateRequest or ScoreRequest, checked, with every default
// filled in (stop 1).

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "expertmesh/v1/generation.pb.h"
#include "router_service/engine/sequence.h"
#include "services/checkpoint/checkpoint.h"
#include "services/text/tokenizer.h"

namespace expertmesh::router {

inline constexpr size_t kMaxRequestIdBytes = 128;

// Refuses texts that would keep the tokenizer busy for too long, before they
// wait for it. Errors: INVALID_ARGUMENT.
absl::Status CheckTextSize(absl::string_view text);

// Thread-safe.
class RequestTranslator {
 public:
  struct Options {
    OverflowPolicy overflow_policy = OverflowPolicy::kWait;  // the deployment's
    int64_t vocab_size = 0;
    int64_t max_context_tokens = 0;
    GenerationDefaults defaults;
  };

  // `tokenizer` may be null: then only token ids are served.
  RequestTranslator(const Options& options, const Tokenizer* tokenizer)
      : options_(options),
        tokenizer_(tokenizer),
        overflow_policy_(options.overflow_policy) {}

  // The deployment's policy, for requests translated from now on.
  void set_overflow_policy(OverflowPolicy policy) {
    overflow_policy_.store(policy, std::memory_order_relaxed);
  }

  // Errors: INVALID_ARGUMENT naming the field and what to change;
  // FAILED_PRECONDITION for text where there is no tokenizer.
  absl::StatusOr<SequenceRequest> Translate(
      const v1::GenerateRequest& request) const;
  absl::StatusOr<SequenceRequest> Translate(
      const v1::ScoreRequest& request) const;

  // The request's own stop strings, or else the checkpoint's.
  std::vector<std::string> StopStringsOf(
      const v1::GenerateRequest& request) const;

  absl::StatusOr<v1::TokenizeResponse> Tokenize(
      const v1::TokenizeRequest& request) const;
  // Ids that only the model knows, as where its vocabulary is padded, decode to
  // nothing.
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(
      const v1::DetokenizeRequest& request) const;

 private:
  // The tokenizer. Errors: FAILED_PRECONDITION where there is none.
  absl::StatusOr<const Tokenizer*> tokenizer() const;
  absl::StatusOr<std::vector<int32_t>> PromptFromText(
      const std::string& text) const;
  absl::StatusOr<std::vector<int32_t>> PromptFromIds(
      const v1::TokenIds& ids) const;
  absl::StatusOr<SamplingParams> Sampling(
      const v1::GenerateRequest& request) const;
  absl::StatusOr<OverflowPolicy> Policy(v1::OverflowPolicy policy,
                                        bool exact) const;
  absl::Status CheckStopStrings(const v1::GenerateRequest& request) const;
  // All ids that end the request, ascending, each once.
  absl::StatusOr<std::vector<int32_t>> StopIds(
      const v1::GenerateRequest& request) const;
  // Errors: INVALID_ARGUMENT where no token is left to be sampled.
  absl::Status CheckMinTokens(const SequenceRequest& request) const;

  const Options options_;
  const Tokenizer* const tokenizer_;
  std::atomic<OverflowPolicy> overflow_policy_;
};

// Sixteen random hexadecimal digits.
std::string RandomRequestId();

}  // namespace expertmesh::router
