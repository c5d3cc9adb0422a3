#pragma once

// Second form of a placement: better, one step at a time.

#include "router_service/control/placement_state.h"

namespace expertmesh::router {

// Relieves the slowest host of each layer for as long as a step does: a slot of
// that host is copied to a less busy one, moved there, exchanged with one of
// its slots, or given up where others hold it. Where a host is full, a copy
// gives way that others hold too. A step is taken only if every host it touches
// ends below the slowest, and if that gains at least `rows_per_byte` for every
// byte of slots that hosts do not hold now (PlacementHost::hosted).
// What gives way may be of another layer, which becomes slower by less than
// this one becomes faster. Fixed hosts, budgets and coverage are respected.
void RefinePlacement(double rows_per_byte, PlacementState* state);

}  // namespace expertmesh::router
