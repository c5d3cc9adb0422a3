#include "router_service/dispatch/endpoint_placement.h"

#include <algorithm>

namespace expertmesh::router {

std::string MeshNumericsId(const std::vector<EndpointInfo>& endpoints) {
  std::map<std::string, size_t> slots;
  for (const EndpointInfo& endpoint : endpoints) {
    if (endpoint.state == EndpointState::kReady) {
      slots[endpoint.numerics_id] += endpoint.hosted.size();
    }
  }
  const auto most = std::max_element(
      slots.begin(), slots.end(),
      [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == slots.end() ? "" : most->first;
}

EndpointPlacement PlaceOnEndpoints(
    const ModelConfig& config, const std::vector<EndpointInfo>& endpoints,
    const std::map<std::string, double>& pool_weights) {
  const std::string numerics_id = MeshNumericsId(endpoints);
  auto placement =
      std::make_shared<Placement>(config.num_layers, config.num_experts);
  for (const EndpointInfo& endpoint : endpoints) {
    if (endpoint.state != EndpointState::kReady) continue;
    const bool is_preferred = endpoint.numerics_id == numerics_id;
    if (const auto weight = pool_weights.find(endpoint.pool);
        weight != pool_weights.end()) {
      placement->set_weight(endpoint.index, weight->second);
    }
    for (const ExpertSlot& slot : endpoint.hosted) {
      if (slot.layer < config.num_layers &&
          slot.expert_id < config.num_experts) {
        placement->Add(slot.layer, slot.expert_id, endpoint.index,
                       is_preferred);
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
