#include "expert_service/weights/slot_list.h"

#include <algorithm>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "services/checkpoint/expert_range.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

absl::Status CheckLayer(int64_t layer, const ModelConfig& model) {
  if (layer < 0 || layer >= model.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("there is no layer ", layer,
                                                   " (the model has ",
                                                   model.num_layers, ")"));
  }
  if (!model.layers[layer].is_moe) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, " of the model has no experts"));
  }
  return absl::OkStatus();
}

// The layers of one part: that after the @, or all with experts. Takes the @
// and what follows off `part`.
absl::StatusOr<std::vector<int64_t>> TakeLayers(absl::string_view* part,
                                                const ModelConfig& model) {
  std::vector<int64_t> layers;
  const size_t at = part->find('@');
  if (at == absl::string_view::npos) {
    for (int64_t layer = 0; layer < model.num_layers; ++layer) {
      if (model.layers[layer].is_moe) layers.push_back(layer);
    }
    return layers;
  }
  const absl::string_view text = part->substr(at + 1);
  int64_t layer = 0;
  if (!absl::SimpleAtoi(text, &layer)) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text), " is not a layer"));
  }
  RETURN_IF_ERROR(CheckLayer(layer, model));
  *part = part->substr(0, at);
  layers.push_back(layer);
  return layers;
}

}  // namespace

absl::StatusOr<std::vector<ExpertSlot>> ParseSlotList(
    absl::string_view text, const ModelConfig& model) {
  std::vector<ExpertSlot> slots;
  if (text == "none") return slots;
  const std::string all = absl::StrCat("0-", model.num_experts - 1);
  if (text.empty()) text = all;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    ASSIGN_OR_RETURN(const auto layers, TakeLayers(&part, model));
    ASSIGN_OR_RETURN(const auto experts,
                     ParseExpertList(part, model.num_experts));
    for (const int64_t layer : layers) {
      for (const int64_t expert : experts) slots.push_back({layer, expert});
    }
  }
  std::sort(slots.begin(), slots.end());
  const auto twice = std::adjacent_find(slots.begin(), slots.end());
  if (twice != slots.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expert list ", Quoted(text), ": expert ", twice->expert,
                     " of layer ", twice->layer, " is named twice"));
  }
  return slots;
}

std::string FormatSlotList(absl::Span<const ExpertSlot> slots,
                           const ModelConfig& model) {
  if (slots.empty()) return "none";
  std::map<int64_t, int64_t> layers_of;  // by expert
  for (const ExpertSlot& slot : slots) ++layers_of[slot.expert];
  std::vector<int64_t> everywhere;
  for (const auto& [expert, layers] : layers_of) {
    if (layers == model.num_moe_layers()) everywhere.push_back(expert);
  }
  std::vector<std::string> parts;
  if (!everywhere.empty()) parts.push_back(FormatExpertList(everywhere));
  std::map<int64_t, std::vector<int64_t>> singles;  // by layer
  for (const ExpertSlot& slot : slots) {
    if (layers_of[slot.expert] == model.num_moe_layers()) continue;
    singles[slot.layer].push_back(slot.expert);
  }
  for (auto& [layer, experts] : singles) {
    std::sort(experts.begin(), experts.end());
    for (const int64_t expert : experts) {
      parts.push_back(absl::StrCat(expert, "@", layer));
    }
  }
  return absl::StrJoin(parts, ",");
}

absl::Status CheckSlots(absl::Span<const ExpertSlot> slots,
                        const ModelConfig& model) {
  for (const ExpertSlot& slot : slots) {
    RETURN_IF_ERROR(CheckLayer(slot.layer, model));
    if (slot.expert < 0 || slot.expert >= model.num_experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("there is no expert ", slot.expert, " (the model has ",
                       model.num_experts, ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace expertmesh::expert
