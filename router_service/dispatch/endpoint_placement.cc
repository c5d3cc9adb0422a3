#include "router_service/dispatch/endpoint_placement.h"

namespace expertmesh::router {

EndpointPlacement PlaceOnEndpoints(const ModelConfig& config,
                                   const std::vector<EndpointInfo>& endpoints) {
  auto placement =
      std::make_shared<Placement>(config.num_layers, config.num_experts);
  for (const EndpointInfo& endpoint : endpoints) {
    if (endpoint.state != EndpointState::kReady) continue;
    for (const ExpertSlot& slot : endpoint.hosted) {
      if (slot.layer < config.num_layers &&
          slot.expert_id < config.num_experts) {
        placement->Add(slot.layer, slot.expert_id, endpoint.index);
      }
    }
  }
  EndpointPlacement out;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].is_moe) continue;
    for (int64_t expert = 0; expert < config.num_experts; ++expert) {
      if (placement->replicas(layer, expert).empty()) ++out.uncovered_slots;
    }
  }
  out.placement = std::move(placement);
  return out;
}

}  // namespace expertmesh::router
