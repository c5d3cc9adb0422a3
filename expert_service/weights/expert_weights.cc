#include "expert_service/weights/expert_weights.h"

#include <algorithm>
#include <map>
#include <utility>

namespace expertmesh::expert {
namespace {

std::vector<ExpertWeights::Expert> Share(std::vector<PackedExpert> experts) {
  std::vector<ExpertWeights::Expert> shared;
  shared.reserve(experts.size());
  for (PackedExpert& expert : experts) {
    shared.push_back(std::make_shared<const PackedExpert>(std::move(expert)));
  }
  return shared;
}

std::shared_ptr<const ExpertWeights> FromMap(
    int64_t num_layers, int64_t num_experts,
    const std::map<ExpertSlot, ExpertWeights::Expert>& by_slot) {
  std::vector<ExpertSlot> slots;
  std::vector<ExpertWeights::Expert> experts;
  for (const auto& [slot, expert] : by_slot) {
    slots.push_back(slot);
    experts.push_back(expert);
  }
  return std::make_shared<const ExpertWeights>(
      num_layers, num_experts, std::move(slots), std::move(experts));
}

}  // namespace

ExpertWeights::ExpertWeights(int64_t num_layers, int64_t num_experts,
                             std::vector<ExpertSlot> slots,
                             std::vector<Expert> experts)
    : num_layers_(num_layers),
      num_experts_(num_experts),
      slots_(std::move(slots)),
      experts_(std::move(experts)),
      by_slot_(static_cast<size_t>(num_layers * num_experts), nullptr) {
  for (size_t i = 0; i < slots_.size(); ++i) {
    by_slot_[slots_[i].layer * num_experts_ + slots_[i].expert] =
        experts_[i].get();
    size_bytes_ += experts_[i]->size_bytes();
  }
}

ExpertWeights::ExpertWeights(int64_t num_layers, int64_t num_experts,
                             std::vector<ExpertSlot> slots,
                             std::vector<PackedExpert> experts)
    : ExpertWeights(num_layers, num_experts, std::move(slots),
                    Share(std::move(experts))) {}

std::shared_ptr<const ExpertWeights> ExpertWeights::With(
    absl::Span<const ExpertSlot> slots,
    absl::Span<const Expert> experts) const {
  std::map<ExpertSlot, Expert> by_slot;
  for (size_t i = 0; i < slots_.size(); ++i) by_slot[slots_[i]] = experts_[i];
  for (size_t i = 0; i < slots.size(); ++i) {
    by_slot.try_emplace(slots[i], experts[i]);
  }
  return FromMap(num_layers_, num_experts_, by_slot);
}

std::shared_ptr<const ExpertWeights> ExpertWeights::Without(
    absl::Span<const ExpertSlot> slots) const {
  std::map<ExpertSlot, Expert> by_slot;
  for (size_t i = 0; i < slots_.size(); ++i) by_slot[slots_[i]] = experts_[i];
  for (const ExpertSlot& slot : slots) by_slot.erase(slot);
  return FromMap(num_layers_, num_experts_, by_slot);
}

const LoadedExpert* ExpertWeights::Find(int64_t layer, int64_t expert) const {
  if (layer < 0 || layer >= num_layers_ || expert < 0 ||
      expert >= num_experts_) {
    return nullptr;
  }
  return by_slot_[layer * num_experts_ + expert];
}

}  // namespace expertmesh::expert
