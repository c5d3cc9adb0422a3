#include "router_service/dispatch/endpoint_placement.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

bool IsInModel(const ExpertSlot& slot, const ModelConfig& config) {
  return slot.layer < config.num_layers && slot.expert_id < config.num_experts;
}

// SplitMix64's finalizer: the same on every host, which absl::Hash is not.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Names the process; its address where it has not said which it is.
uint64_t InstanceKey(const EndpointInfo& endpoint) {
  if (endpoint.instance_id != 0) return endpoint.instance_id;
  uint64_t key = 1;
  for (const char c : endpoint.address) {
    key = Mix(key + static_cast<unsigned char>(c));
  }
  return key;
}

// Gives the slots that nobody serves to draining endpoints.
void AddDraining(const ModelConfig& config,
                 const std::vector<EndpointInfo>& endpoints,
                 const std::string& numerics_id, Placement* placement) {
  const Placement of_ready = *placement;
  for (const EndpointInfo& endpoint : endpoints) {
    if (endpoint.state != EndpointState::kDraining) continue;
    for (const ExpertSlot& slot : endpoint.hosted) {
      if (IsInModel(slot, config) &&
          of_ready.replicas(slot.layer, slot.expert_id).empty()) {
        placement->Add(slot.layer, slot.expert_id, endpoint.index,
                       endpoint.numerics_id == numerics_id);
      }
    }
  }
}

}  // namespace

std::string MeshNumericsId(const std::vector<EndpointInfo>& endpoints,
                           const std::string& current) {
  std::map<std::string, size_t> slots;
  for (const EndpointInfo& endpoint : endpoints) {
    if (endpoint.state != EndpointState::kReady) continue;
    if (endpoint.numerics_id == current) return current;
    slots[endpoint.numerics_id] += endpoint.hosted.size();
  }
  const auto most = std::max_element(
      slots.begin(), slots.end(),
      [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == slots.end() ? "" : most->first;
}

bool MeshNumerics::Choose(const std::vector<EndpointInfo>& endpoints) {
  chosen_ = MeshNumericsId(endpoints, kept_);
  if (chosen_.empty() || chosen_ == last_) return false;
  const bool ends = !last_.empty();
  last_ = chosen_;
  return ends;
}

EndpointPlacement PlaceOnEndpoints(
    const ModelConfig& config, const std::vector<EndpointInfo>& endpoints,
    const std::string& numerics_id,
    const std::map<std::string, double>& pool_weights) {
  auto placement =
      std::make_shared<Placement>(config.num_layers, config.num_experts);
  EndpointPlacement out;
  uint64_t checksum = 0;
  bool any_draining = false;
  for (const EndpointInfo& endpoint : endpoints) {
    any_draining |= endpoint.state == EndpointState::kDraining;
    if (endpoint.adds_rows) placement->set_adds_rows(endpoint.index);
    if (endpoint.state != EndpointState::kReady) continue;
    const bool is_preferred = endpoint.numerics_id == numerics_id;
    if (const auto weight = pool_weights.find(endpoint.pool);
        weight != pool_weights.end()) {
      placement->set_weight(endpoint.index, weight->second);
    }
    placement->set_first_credit(endpoint.index, endpoint.credit_rows);
    const uint64_t key = InstanceKey(endpoint);
    for (const ExpertSlot& slot : endpoint.hosted) {
      if (IsInModel(slot, config)) {
        placement->Add(slot.layer, slot.expert_id, endpoint.index,
                       is_preferred);
        ++out.copies;
        checksum += Mix(key + Mix(uint64_t{slot.layer} << 32 | slot.expert_id));
      }
    }
  }
  out.checksum = static_cast<uint32_t>(checksum >> 32);
  if (any_draining) {
    AddDraining(config, endpoints, numerics_id, placement.get());
  }
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
