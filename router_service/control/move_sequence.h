#pragma once

// From one placement to another without uncovering a slot on the way.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "router_service/control/placement_problem.h"

namespace expertmesh::router {

struct PlacementMove {
  enum class Kind : uint8_t { kLoad, kUnload };
  Kind kind = Kind::kLoad;
  int host = 0;  // index of PlacementProblem::hosts
  SlotId slot;
  int64_t bytes = 0;  // of the slot, either way
};

struct MoveSequence {
  std::vector<PlacementMove> moves;
  HostedSlots reached;        // contents after the last move
  int64_t bytes_to_load = 0;  // sum over loads
};

// Orders the moves from the current contents to `target` such that after every
// one of them each slot that was hosted still is, and no host that kept its
// budget exceeds it. Loads come first, those of the most demanded slots ahead;
// a host unloads before the end only what is hosted elsewhere, to make room.
// So every prefix is a placement worth having.
//
// Full hosts that are to exchange slots which nobody else holds cannot do so
// directly: a copy that others hold as well gives way for the time and is
// loaded again. Where there is none, those moves are left out and `reached`
// differs from `target`. Copies that a host over its budget must lose are never
// left out.
// Requires: ValidateProblem. Errors: those of CheckPlacement for `target`;
// FAILED_PRECONDITION where a host over its budget cannot be relieved.
absl::StatusOr<MoveSequence> PlanMoves(const PlacementProblem& problem,
                                       const HostedSlots& target);

}  // namespace expertmesh::router
