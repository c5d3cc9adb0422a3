#pragma once

// What the gate chose, and what may be done about overflow. Shared by the
// steps of dispatch.

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh::router {

enum class OverflowPolicy : uint8_t {
  kWait,      // excess rows go in later waves of the same layer (exact)
  kNextBest,  // the gate chooses again among experts with room
  kDrop,      // the row is left out; the residual passes through
};
absl::string_view OverflowPolicyName(OverflowPolicy policy);
absl::StatusOr<OverflowPolicy> ParseOverflowPolicy(absl::string_view name);

// What became of one (token, expert) assignment.
enum class RowOutcome : uint8_t {
  kPrimary,
  kReplica,
  kWaited,
  kRerouted,
  kDropped,
};
inline constexpr int kNumRowOutcomes = 5;
absl::string_view RowOutcomeName(RowOutcome outcome);

// Why an assignment could not simply be served by its first choice.
enum class OverflowReason : uint8_t {
  kCapacity,   // the expert is full
  kUncovered,  // nobody serves the expert now
  kBudget,     // full, and its policy would lose more than it may now
};
inline constexpr int kNumOverflowReasons = 3;
absl::string_view OverflowReasonName(OverflowReason reason);

// Rows by reason and outcome.
using OverflowCounts =
    std::array<std::array<uint32_t, kNumRowOutcomes>, kNumOverflowReasons>;

// Gate mass that policies other than `wait` may lose in one plan: so much, and
// a share of the plan's own.
struct LossAllowance {
  double mass = std::numeric_limits<double>::infinity();  // may be negative
  double share = 0;
};

// The gate's answer for all tokens of a step at one layer.
struct Routing {
  int64_t num_tokens = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  std::vector<float> scores;           // [num_tokens, num_experts]
  std::vector<int32_t> topk_ids;       // [num_tokens, top_k], ascending id
  std::vector<float> topk_weights;     // [num_tokens, top_k]
  std::vector<OverflowPolicy> policy;  // [num_tokens]
  LossAllowance allowance;
};

// Counts of what became of assignments; of a token, a request or a service.
struct RoutingAccount {
  std::array<uint32_t, kNumRowOutcomes> rows = {};
  double kept_mass = 0;      // gate scores of the experts that serve
  double original_mass = 0;  // gate scores of the experts first chosen
  // Rows sent to an endpoint of another numerics_id than the mesh's.
  uint32_t crossed = 0;

  uint32_t operator[](RowOutcome outcome) const {
    return rows[static_cast<int>(outcome)];
  }
  void Add(const RoutingAccount& other) {
    for (int i = 0; i < kNumRowOutcomes; ++i) rows[i] += other.rows[i];
    kept_mass += other.kept_mass;
    original_mass += other.original_mass;
    crossed += other.crossed;
  }
  // 1 where nothing was chosen.
  double GateMassKept() const {
    return original_mass > 0 ? kept_mass / original_mass : 1.0;
  }
};

}  // namespace expertmesh::router
