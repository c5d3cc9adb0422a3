#pragma once

// What must go elsewhere before a host may leave.

#include "absl/status/statusor.h"
#include "router_service/control/move_sequence.h"
#include "router_service/control/placement_problem.h"

namespace expertmesh::router {

// Moves after which others hold whatever `host` (an index of
// PlacementProblem::hosts) holds; it keeps its contents itself. Only what it
// alone holds is loaded, the most demanded first, each slot on the managed host
// with room that is least busy in that layer. Where none has room, a copy gives
// way that another host besides has, the least demanded one. Nothing else
// moves.
// Requires: ValidateProblem. Errors: FAILED_PRECONDITION naming a slot that
// would be uncovered, or for which there is no way.
absl::StatusOr<MoveSequence> PlanEvacuation(const PlacementProblem& problem,
                                            int host);

}  // namespace expertmesh::router
