#pragma once

// Rows that nobody computed → other experts, or none, by their tokens' policy.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/dispatch/routing.h"
#include "router_service/model/gate.h"

namespace expertmesh::router {

// Changes a plan whose rows are back but for some. Pure, as the planner; owns
// scratch memory; one thread.
//
// Rows keep their numbers, so what has come back stays what and where it is: a
// row that an expert chosen anew gives takes the place of one that was lost.
class PlanRepair {
 public:
  // `gate` must outlive this and be the one that made the routings.
  explicit PlanRepair(const Gate* gate) : gate_(gate) {}

  // What tokens with lost rows do without them:
  //   kWait      nothing: they stay lost.
  //   kNextBest  the gate's own rule is applied again, weights included, to the
  //              experts that somebody serves and those whose rows of this
  //              token are back. Capacity is not asked. A token that finds
  //              fewer than top_k experts keeps what it has; its rows stay
  //              lost.
  //   kDrop      the rows are left out; the other rows keep their weights.
  // Accounts and counts are corrected, with the reason kUncovered; a row that
  // is computed later than planned has waited. Groups cover the rows of tokens
  // in the same order as before, but not sorted by expert any more.
  //   replicas  [num_experts] that serve each expert now; zero for the experts
  //             of `lost`
  //   lost      rows of `plan` that tokens are combined from
  //   wanted    overwritten with the rows to be computed now
  // Returns the gate mass that is lost by it.
  double Repair(const Routing& routing, absl::Span<const uint16_t> replicas,
                absl::Span<const uint32_t> lost, DispatchPlan* plan,
                std::vector<uint32_t>* wanted);

 private:
  static constexpr int32_t kNobody = -1;
  // A row's new expert; kNobody: the row is gone.
  struct Move {
    uint32_t row;
    int32_t expert;
  };
  // One of the rows a token is combined from.
  struct Held {
    uint32_t row;
    int32_t expert;
    bool is_lost;
  };

  // Leaves in held_ the token's rows. Returns whether any of them is lost.
  bool Collect(const Routing& routing, const DispatchPlan& plan, int64_t token);
  void Drop(const Routing& routing, int64_t token, DispatchPlan* plan);
  // False: too few experts.
  bool ChooseAgain(const Routing& routing, int64_t token, DispatchPlan* plan);
  // Moves one of the token's rows to another expert, or to kNobody.
  void MoveRow(const Routing& routing, int64_t token, const Held& held,
               int32_t expert, DispatchPlan* plan);
  // Gives the rows of moves_ their new experts.
  void Regroup(DispatchPlan* plan);

  const Gate* const gate_;
  uint32_t first_late_row_ = 0;      // of the second wave
  std::vector<uint8_t> is_lost_;     // [num_rows]
  std::vector<uint8_t> masked_;      // [num_experts] nobody serves it
  std::vector<uint8_t> own_masked_;  // the same for one token
  std::vector<Move> moves_;
  std::vector<Held> held_;
  std::vector<Held> free_;             // of held_: lost, or not chosen again
  std::vector<int32_t> chosen_ids_;    // [top_k]
  std::vector<float> chosen_weights_;  // [top_k]
  std::vector<RowGroup> groups_;
};

}  // namespace expertmesh::router
