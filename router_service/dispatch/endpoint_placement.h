#pragma once

// From what endpoints announce to which of them serves each slot.

#include <cstdint>
#include <memory>
#include <vector>

#include "router_service/dispatch/placement.h"
#include "router_service/transport/endpoint_set.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh::router {

struct EndpointPlacement {
  std::shared_ptr<const Placement> placement;
  int64_t uncovered_slots = 0;  // of MoE layers, hosted by no ready endpoint
};

// Every ready endpoint serves what it hosts; endpoints are indices of the
// transport. What lies outside the model is ignored.
EndpointPlacement PlaceOnEndpoints(const ModelConfig& config,
                                   const std::vector<EndpointInfo>& endpoints);

}  // namespace expertmesh::router
