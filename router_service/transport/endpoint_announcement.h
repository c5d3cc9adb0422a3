#pragma once

#include <optional>
#include <string>
#include <vector>

#include "expertmesh/expert/v1/expert.pb.h"
#include "router_service/transport/endpoint_info.h"

namespace expertmesh::router {

struct Refusal {
  RefusalReason reason;
  std::string message;  // what differs, and how
};

// Whether `state` comes from an endpoint that can serve experts of `model`, and
// why not. Another numerics_id is no reason: its results differ in the last
// bits at most, which dispatch weighs.
std::optional<Refusal> CheckAnnouncement(
    const ModelIdentity& model, const expert::v1::EndpointState& state);

// Copies what an endpoint announced into *info, `hosted` sorted; what is known
// without its word stays.
// Requires: CheckAnnouncement(model, state) found nothing.
void ReadAnnouncement(const expert::v1::EndpointState& state,
                      EndpointInfo* info);

// The counters of an announcement; slots may lie outside the model.
EndpointLoad ReadLoad(const expert::v1::EndpointState& state);

}  // namespace expertmesh::router
