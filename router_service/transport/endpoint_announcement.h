#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "expertmesh/expert/v1/expert.pb.h"
#include "router_service/transport/endpoint_set.h"

namespace expertmesh::router {

// Checks that `state` comes from an endpoint that holds experts of `model`.
// Errors: FAILED_PRECONDITION saying what differs.
absl::Status CheckIdentity(const ModelIdentity& model,
                           const expert::v1::EndpointState& state);

// Copies what an endpoint announced into *info, `hosted` sorted and without
// repetitions; address, state, reason and inflight_rows stay.
// Requires: CheckIdentity(model, state) is OK.
void ReadAnnouncement(const expert::v1::EndpointState& state,
                      EndpointInfo* info);

}  // namespace expertmesh::router
