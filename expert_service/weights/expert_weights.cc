#include "expert_service/weights/expert_weights.h"

#include <utility>

namespace expertmesh::expert {

ExpertWeights::ExpertWeights(int64_t num_layers, int64_t num_experts,
                             std::vector<ExpertSlot> slots,
                             std::vector<PackedExpert> experts)
    : num_layers_(num_layers),
      num_experts_(num_experts),
      slots_(std::move(slots)),
      experts_(std::move(experts)),
      by_slot_(static_cast<size_t>(num_layers * num_experts), nullptr) {
  for (size_t i = 0; i < slots_.size(); ++i) {
    by_slot_[slots_[i].layer * num_experts_ + slots_[i].expert] = &experts_[i];
    size_bytes_ += experts_[i].size_bytes();
  }
}

const PackedExpert* ExpertWeights::Find(int64_t layer, int64_t expert) const {
  if (layer < 0 || layer >= num_layers_ || expert < 0 ||
      expert >= num_experts_) {
    return nullptr;
  }
  return by_slot_[layer * num_experts_ + expert];
}

}  // namespace expertmesh::expert
