#pragma once

// Rotary position embedding. Source: arXiv:2104.09864; scaling as in
// transformers' modeling_rope_utils.

#include <cstdint>
#include <vector>

#include "services/checkpoint/model_config.h"

namespace expertmesh::router {

// cos and sin of every position up to a limit. Immutable; thread-safe.
class RopeTable {
 public:
  RopeTable(const RopeConfig& config, int64_t max_positions);

  // Rotates the first rotary_dim elements of one head in place, first half
  // against second half. Requires 0 ≤ position < max_positions.
  void Rotate(int64_t position, float* head) const;

 private:
  const int64_t half_;
  std::vector<float> cos_;  // [max_positions, half]
  std::vector<float> sin_;
};

// Inverse frequencies [rotary_dim / 2] after scaling, and the factor on cos and
// sin that the scaling asks for.
std::vector<float> RopeInverseFrequencies(const RopeConfig& config);
float RopeAttentionFactor(const RopeConfig& config);

}  // namespace expertmesh::router
