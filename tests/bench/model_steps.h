#pragma once

// Steps of a model without an engine, and how many tokens a second they give.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "router_service/model/transformer.h"
#include "tests/support/local_model.h"

namespace expertmesh::testing {

// Tokens of a sequence that its pages have room for.
inline constexpr int64_t kContextTokens = 512;

// The options of models for these steps: bf16 throughout, or all matrices but
// the gates' in `format`; no capacity.
LocalModelOptions BenchOptions(
    int64_t max_seqs, std::optional<WeightFormat> format = std::nullopt);

// `num_seqs` prompts of `tokens` each, in one step with logits for the last
// token of each. `observer` may be null.
double PrefillTokensPerSecond(LocalModel* model, int64_t num_seqs,
                              int64_t tokens,
                              router::RoutingObserver* observer = nullptr);

// A token more of each of `num_seqs` sequences, after a short prompt; `steps`
// of them.
double DecodeTokensPerSecond(LocalModel* model, int64_t num_seqs, int64_t steps,
                             router::RoutingObserver* observer = nullptr);

// One of several models that are compared.
struct Contender {
  std::string name;
  LocalModel* model;
};

// Prints the contenders' tokens per second, and the first one's over each
// other's, for prompts and decoding. Rounds alternate between them, so that a
// machine whose speed drifts slows all; figures are medians over rounds, ratios
// are made within a round.
void CompareSpeeds(const std::vector<Contender>& contenders, int rounds);

}  // namespace expertmesh::testing
