#pragma once

// First form of a placement: how many copies of each slot, and where.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "router_service/control/placement_state.h"

namespace expertmesh::router {

struct PackingOptions {
  // A copy stays where it is as long as its host has no more than so many times
  // the ideal busy rows of the layer; 0: nothing is kept.
  double keep_limit = 0;
  // A copy there is already counts as so much more in demand than a new one.
  double copy_bonus = 0;
  // Every layer gets the same number of bytes, and about its share of every
  // host; otherwise layers compete for them.
  bool even_layers = false;
};

// Copies on managed hosts wanted of each slot [num_slots]: one of each that no
// fixed host holds, then one after the other of the slot whose replicas are
// loaded most, until the managed hosts are full. Slots without demand get no
// further copy.
std::vector<int> CountCopies(const PlacementState& fixed,
                             const PackingOptions& options);

// Places those copies, heaviest first, each on the least busy host of its layer
// that has room and holds no other copy of the slot.
// Source: arXiv:2412.19437, section 3.4 (redundant experts); longest processing
// time first: Graham 1969.
// Errors: FAILED_PRECONDITION naming a slot for which no host has room.
absl::StatusOr<PlacementState> PackPlacement(const PlacementProblem& problem,
                                             const PackingOptions& options);

}  // namespace expertmesh::router
