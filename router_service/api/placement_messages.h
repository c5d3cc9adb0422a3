#pragma once

// Placements between control's types and those of expertmesh.admin.v1.

#include "absl/types/span.h"
#include "expertmesh/admin/v1/admin.pb.h"
#include "router_service/control/controller.h"

namespace expertmesh::router {

void FillPlacement(const MeshPlacement& placement, admin::v1::Placement* out);
void FillProposal(const PlacementProposal& proposal,
                  admin::v1::PlacementProposal* out);
void FillApplied(const AppliedPlacement& applied,
                 admin::v1::ApplyPlacementResponse* out);

// Appends `slots`, ascending, by layer.
void FillHosted(
    absl::Span<const SlotId> slots,
    google::protobuf::RepeatedPtrField<admin::v1::HostedExperts>* out);

// Errors: INVALID_ARGUMENT for an address named twice, and for numbers that no
// model has.
absl::StatusOr<PlacementTarget> ReadTarget(
    const admin::v1::PlacementTarget& message);

}  // namespace expertmesh::router
