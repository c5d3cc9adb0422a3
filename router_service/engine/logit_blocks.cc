#include "router_service/engine/logit_blocks.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

// The highest of some logits for which `counts` holds. A maximum has the same
// value in any order.
template <typename Counts>
float MaxOf(absl::Span<const float> logits, const Counts& counts) {
  std::array<float, kLanes> max;
  max.fill(-kInfinity);
  const auto visit = [&](float x, float& lane) {
    lane = counts(x) && x > lane ? x : lane;  // NaN: false
  };
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) visit(logits[i + j], max[j]);
  }
  for (; i < logits.size(); ++i) visit(logits[i], max[0]);
  return *std::max_element(max.begin(), max.end());
}

}  // namespace

float MaxFinite(absl::Span<const float> logits) {
  const float max = MaxOf(logits, [](float) { return true; });
  // Hardly ever: the plain maximum is one instruction.
  if (max == kInfinity) {
    return MaxOf(logits, [](float x) { return x < kInfinity; });
  }
  return max;
}

void Weigh(absl::Span<const float> logits, float max, float temperature,
           float* weights) {
  if (AllFinite(logits.data(), static_cast<int64_t>(logits.size()))) {
    for (size_t i = 0; i < logits.size(); ++i) {
      weights[i] = (logits[i] - max) / temperature;
    }
  } else {
    for (size_t i = 0; i < logits.size(); ++i) {
      weights[i] = std::isfinite(logits[i]) ? (logits[i] - max) / temperature
                                            : -kInfinity;
    }
  }
  Exp(weights, static_cast<int64_t>(logits.size()), weights);
}

}  // namespace expertmesh::router
