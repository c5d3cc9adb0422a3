#pragma once

// Plans for meshes where some hosts stand by.

#include "absl/status/statusor.h"
#include "router_service/control/move_sequence.h"
#include "router_service/control/placement_problem.h"
#include "router_service/control/planner.h"

namespace expertmesh::router {

// As PlanPlacement, for the hosts that do not stand by. Those that do stay as
// they are, and count for what they alone hold: of anything else they would be
// given no rows. Only where there is no such placement is planned with them as
// with all others, since other bits are better than none.
absl::StatusOr<PlacementPlan> PlanAroundStandby(const PlacementProblem& problem,
                                                const PlannerOptions& options);

// As PlanEvacuation, but nothing is loaded on hosts that stand by, unless there
// is no other way.
absl::StatusOr<MoveSequence> EvacuateAroundStandby(
    const PlacementProblem& problem, int host);

}  // namespace expertmesh::router
