#pragma once

// Placements for people.

#include <string>

#include "expertmesh/admin/v1/admin.pb.h"

namespace expertmesh {

// A line for each service: address, pool, and what it holds.
std::string PlacementText(const admin::v1::Placement& placement);

// What a proposal gains, costs and moves.
std::string ProposalText(const admin::v1::PlacementProposal& proposal);

// "12 moves made, 3.0 MiB loaded; the placement is of version 7".
std::string AppliedText(const admin::v1::ApplyPlacementResponse& applied);

}  // namespace expertmesh
