#pragma once

// What of a plan cannot wait for a better time.

#include <vector>

#include "absl/status/statusor.h"
#include "router_service/control/move_sequence.h"
#include "router_service/control/placement_problem.h"

namespace expertmesh::router {

// The moves that make the current placement one that may be, and no others: one
// copy of each slot that nobody holds, on a host where `planned` has it, and
// unloads of what hosts have no room for. Nothing else that `planned` would
// change for evenness. Unloaded is only what `planned` does not leave there and
// others hold as well.
// Requires: ValidateProblem, and `planned` passes CheckPlacement. Errors:
// FAILED_PRECONDITION where this takes further moves; only the whole plan will
// do then.
absl::StatusOr<std::vector<PlacementMove>> UrgentMoves(
    const PlacementProblem& problem, const HostedSlots& planned);

}  // namespace expertmesh::router
