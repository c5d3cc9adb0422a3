#pragma once

// Logits in blocks of ids, as the sampler passes over them.

#include <cstddef>
#include <limits>

#include "absl/types/span.h"

namespace expertmesh::router {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Logits looked at together, so that the compiler can use vector instructions.
inline constexpr size_t kLanes = 16;

// Ids of a block, whose weights go through Exp at once.
inline constexpr size_t kBlock = 256;

// At and below this, in logits over temperature, a weight is zero.
inline constexpr float kNoWeight = -104.0f;

inline size_t NumBlocks(size_t num_logits) {
  return (num_logits + kBlock - 1) / kBlock;
}
inline absl::Span<const float> BlockOf(absl::Span<const float> logits,
                                       size_t block) {
  return logits.subspan(block * kBlock, kBlock);
}

// The highest finite logit, or -inf.
float MaxFinite(absl::Span<const float> logits);

// e^((logit - max) / temperature) of each, zero where a logit is not finite.
// `weights` may be the logits.
void Weigh(absl::Span<const float> logits, float max, float temperature,
           float* weights);

}  // namespace expertmesh::router
