#pragma once

// Demand and hosts → what every host should hold.

#include <cstdint>

#include "absl/status/statusor.h"
#include "router_service/control/move_sequence.h"
#include "router_service/control/placement_problem.h"
#include "router_service/control/placement_quality.h"

namespace expertmesh::router {

struct PlannerOptions {
  // What loading as many bytes as all slots of the model have once must gain in
  // `slowest_over_mean` to be worth it; fewer bytes in proportion. 0: moves
  // cost nothing.
  double move_penalty = 0.02;
};

struct PlacementPlan {
  HostedSlots hosted;
  PlacementQuality before;
  PlacementQuality after;
  int64_t bytes_to_load = 0;
  std::vector<PlacementMove> moves;  // in order; see PlanMoves
};

// Plans a placement that covers every slot and takes as little time for a step
// as it can find: heavy slots are replicated, copies of one slot lie on
// different hosts, each layer is balanced over all hosts by itself, and the
// layers of a host share its budget. Room left over goes to further copies of
// slots in demand.
//
// Pure and deterministic: equal problems give equal plans. Several placements
// are made, from one that keeps what is there to one from nothing, and the best
// by slowest_over_mean + move_penalty · bytes to load ÷ bytes of the model is
// taken; the current placement is among them if it is valid.
// Errors: those of ValidateProblem; FAILED_PRECONDITION naming a slot for which
// no host has room.
absl::StatusOr<PlacementPlan> PlanPlacement(const PlacementProblem& problem,
                                            const PlannerOptions& options);

}  // namespace expertmesh::router
