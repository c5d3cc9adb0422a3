#pragma once

// The gate: logits → scores → experts and weights (stop 4).

#include <cstdint>

#include "absl/types/span.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh::router {

// Pure arithmetic on one token at a time; thread-safe.
class Gate {
 public:
  explicit Gate(const ModelConfig& config);

  int64_t num_experts() const { return num_experts_; }
  int64_t top_k() const { return top_k_; }

  // logits [num_experts] → scores [num_experts], what the family's rule chooses
  // by and what gate mass is counted in (softmax probabilities). May alias.
  void Score(absl::Span<const float> logits, absl::Span<float> scores) const;

  // The family's choice and weight rule over experts that are not masked.
  //   scores  [num_experts]
  //   masked  [num_experts] nonzero: not to be chosen; empty: none is
  //   ids     [top_k] chosen experts, ascending id
  //   weights [top_k] after renormalisation and scaling
  // Ties go to the lower expert id. Returns how many were chosen: top_k, or the
  // number of experts not masked where that is smaller.
  int64_t Choose(absl::Span<const float> scores,
                 absl::Span<const uint8_t> masked, absl::Span<int32_t> ids,
                 absl::Span<float> weights) const;

 private:
  GateRule rule_;
  int64_t num_experts_;
  int64_t top_k_;
  bool norm_topk_prob_;
};

}  // namespace expertmesh::router
