#pragma once

// Stops 5a to 5c: top-k choices → row groups within capacity. Pure: no clock,
// no network, no randomness; the same routing gives the same plan.

#include <cstdint>
#include <vector>

#include "router_service/dispatch/capacity.h"
#include "router_service/dispatch/routing.h"
#include "router_service/model/gate.h"

namespace expertmesh::router {

// Consecutive rows for one expert in one wave.
struct RowGroup {
  int32_t expert_id = 0;
  uint32_t first_row = 0;
  uint32_t last_row = 0;  // one past the end
};

// Rows sorted by (wave, expert id, token). Vectors keep their capacity from
// plan to plan, so that a steady step allocates nothing.
struct DispatchPlan {
  std::vector<uint32_t> row_token;    // [num_rows]
  std::vector<float> row_weight;      // [num_rows]
  std::vector<RowGroup> groups;       // by (wave, expert id)
  std::vector<uint32_t> wave_groups;  // [num_waves + 1] offsets into groups
  // [num_tokens, top_k] row of each of the token's serving experts, ascending
  // expert id; -1 pads tokens with fewer. This is the order of the combine.
  std::vector<int32_t> token_rows;
  std::vector<RoutingAccount> accounts;  // [num_tokens]
  // Rows above their expert's capacity (of one replica), and among them those
  // of experts that nobody serves now; before any policy.
  int64_t overflow_rows = 0;
  int64_t uncovered_rows = 0;
  // Rows that are not simply primary, by why and what became of them.
  OverflowCounts overflow = {};
  int64_t max_expert_rows = 0;  // demand of the busiest expert, before capacity

  int64_t num_rows() const { return static_cast<int64_t>(row_token.size()); }
  int64_t num_waves() const {
    return static_cast<int64_t>(wave_groups.size()) - 1;
  }
};

// Builds plans. Owns scratch memory; one thread.
//
// Rule. The score of a row is scores[token, expert], not its weight. Each
// expert keeps as many rows of highest score as its replicas have room for,
// `capacity` each, whatever their tokens' policies; of equal scores the earlier
// row (lower token) stays. The others overflow, and their token's policy
// decides:
//   kWait      the row stays with its expert and ranks after the rows of the
//              first wave; the r-th of all rows that stay (0-based, waiting
//              rows by the same order) goes in wave r / room.
//   kNextBest  experts that are full and do not already serve this token are
//              masked and the gate's own rule, weights included, is applied
//              again. What the token already holds and is not chosen again is
//              given back; what is newly chosen takes room in the first wave.
//              Later tokens see both. A token that finds fewer than top_k
//              experts keeps its first choice, and its overflowing rows wait.
//   kDrop      the row is left out; the other rows keep their weights.
// Tokens take their turn by the gate mass of their overflowing rows, the least
// first; of equal ones the earlier. A choice (kNextBest) or a row (kDrop) that
// would lose more than what routing.allowance leaves waits.
// An expert that nobody serves has no room: rows that may go elsewhere do, the
// others wait for somebody, in the first wave. Tokens with such rows come first
// and are not held to the allowance, though what they lose counts: waiting, for
// them, may mean to fail.
// Outcomes: kWaited is a row outside the first wave, kRerouted a row served by
// an expert the token did not choose first, kReplica a row of the first wave
// that only a further replica had room for.
class DispatchPlanner {
 public:
  // `gate` must outlive the planner and be the one that made the routings.
  DispatchPlanner(const Gate* gate, const CapacityOptions& capacity);

  void set_capacity(const CapacityOptions& capacity) {
    capacity_options_ = capacity;
  }

  // Overwrites `plan`. `routing` is as documented at Routing; ids in range.
  //   replicas  [num_experts] that serve each expert now; empty: one each
  void Build(const Routing& routing, absl::Span<const uint16_t> replicas,
             DispatchPlan* plan);

 private:
  // Who serves one of a token's top_k places; slot = token · top_k + place.
  struct Serving {
    int32_t expert;  // kNobody: dropped
    float weight;
    uint32_t wave;  // kUndecided: overflows, and no policy has moved it yet
    bool is_extra;  // only a further replica had room
    // The allowance keeps its policy from moving it.
    bool is_held_back = false;
  };
  // A token whose policy decides about overflowing rows.
  struct Contender {
    bool is_covered;  // somebody serves the experts of these rows
    double stake;     // gate mass of these rows
    uint32_t token;
  };
  // A row that competes for an expert with more rows than capacity.
  struct RankedRow {
    float score;
    uint32_t slot;
  };
  // Rows [first, last) of ranked_ are all rows of `expert`; the first of them,
  // as many as it has room for, are kept.
  struct OverfullExpert {
    int32_t expert;
    size_t first, last;
  };
  struct LateRow {
    uint32_t wave;
    int32_t expert;
    uint32_t token;
    uint32_t place;  // in the token's row of token_rows
    float weight;
  };

  void SetRooms(const Routing& routing, absl::Span<const uint16_t> replicas);
  void CountDemand(const Routing& routing, DispatchPlan* plan);
  void RankOverfull(const Routing& routing);
  void ApplyPolicies(const Routing& routing);
  void FindContenders(const Routing& routing);
  void SetAllowance(const Routing& routing);
  // Whether the loss is within what is left, which it lowers.
  bool Spend(double loss, bool is_covered);
  static void HoldBack(absl::Span<Serving> places);
  //   places  [top_k] the contender's
  void Drop(const Routing& routing, const Contender& contender,
            absl::Span<Serving> places);
  void ChooseAgain(const Routing& routing, const Contender& contender,
                   absl::Span<Serving> places);
  void AssignWaves();
  void EmitFirstWave(const Routing& routing, DispatchPlan* plan);
  void EmitLateWaves(const Routing& routing, DispatchPlan* plan);
  static RowOutcome OutcomeOf(const Serving& serving,
                              absl::Span<const int32_t> first_choice);
  void Account(const Routing& routing, DispatchPlan* plan) const;

  const Gate* const gate_;
  CapacityOptions capacity_options_;

  int64_t capacity_ = 0;           // of one replica, in this plan
  std::vector<int64_t> room_;      // [num_experts] of all its replicas
  std::vector<Serving> serving_;   // [num_tokens, top_k]
  std::vector<int64_t> load_;      // [num_experts] rows; see CountDemand
  std::vector<uint8_t> full_;      // [num_experts] load_ ≥ room_
  std::vector<int64_t> cursor_;    // [num_experts] scratch of counting sorts
  std::vector<RankedRow> ranked_;  // rows of overfull experts
  std::vector<OverfullExpert> overfull_;
  std::vector<Contender> contenders_;
  double allowance_ = 0;               // gate mass that may still be lost
  std::vector<int32_t> chosen_ids_;    // [top_k]
  std::vector<float> chosen_weights_;  // [top_k]
  std::vector<LateRow> late_;
};

}  // namespace expertmesh::router
