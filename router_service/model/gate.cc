#include "router_service/model/gate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

// NaN ranks below every number, so that the choice is always a total order.
float Rank(float score) {
  return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
}

// The ids of the `ids.size()` highest scores, in no useful order. Returns how
// many there were.
int64_t SelectTopK(absl::Span<const float> scores,
                   absl::Span<const uint8_t> masked, absl::Span<int32_t> ids) {
  const int64_t top_k = static_cast<int64_t>(ids.size());
  int64_t count = 0;
  for (int32_t e = 0; e < static_cast<int32_t>(scores.size()); ++e) {
    if (!masked.empty() && masked[e]) continue;
    const float score = Rank(scores[e]);
    if (count == top_k && !(score > Rank(scores[ids[count - 1]]))) continue;
    // Insertion keeps ids by descending score. Ids come ascending and move up
    // only past lower scores, so of equal scores the lower id stays ahead.
    int64_t place = count < top_k ? count++ : count - 1;
    for (; place > 0 && score > Rank(scores[ids[place - 1]]); --place) {
      ids[place] = ids[place - 1];
    }
    ids[place] = e;
  }
  return count;
}

}  // namespace

Gate::Gate(const ModelConfig& config)
    : rule_(config.gate_rule),
      num_experts_(config.num_experts),
      top_k_(config.top_k),
      norm_topk_prob_(config.norm_topk_prob) {}

void Gate::Score(absl::Span<const float> logits,
                 absl::Span<float> scores) const {
  switch (rule_) {
    case GateRule::kSoftmaxTopK:
      if (scores.data() != logits.data()) {
        std::copy(logits.begin(), logits.end(), scores.begin());
      }
      Softmax(scores.data(), num_experts_);
      return;
  }
}

int64_t Gate::Choose(absl::Span<const float> scores,
                     absl::Span<const uint8_t> masked, absl::Span<int32_t> ids,
                     absl::Span<float> weights) const {
  const int64_t count = SelectTopK(scores, masked, ids);
  std::sort(ids.begin(), ids.begin() + count);
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = scores[ids[i]];
    sum += weights[i];
  }
  // Scores that all underflowed to zero leave weights of zero, not NaN.
  if (norm_topk_prob_ && sum != 0.0f) {
    for (int64_t i = 0; i < count; ++i) weights[i] /= sum;
  }
  return count;
}

}  // namespace expertmesh::router
