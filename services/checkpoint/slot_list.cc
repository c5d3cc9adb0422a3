#include "services/checkpoint/slot_list.h"

#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "services/checkpoint/expert_range.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

absl::Status NoSuch(absl::string_view what, absl::string_view id,
                    int64_t count) {
  return absl::InvalidArgumentError(absl::StrCat(
      "there is no ", what, " ", id, " (the model has ", count, ")"));
}

// An id of `what`, below `count`, in decimal digits.
absl::StatusOr<int64_t> ParseId(absl::string_view what, absl::string_view text,
                                int64_t count) {
  text = absl::StripAsciiWhitespace(text);
  int64_t id = 0;
  const bool digits = !text.empty() && std::all_of(text.begin(), text.end(),
                                                   absl::ascii_isdigit);
  if (!digits) {
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text), " is not ", what == "expert" ? "an " : "a ",
                     what, " id"));
  }
  if (!absl::SimpleAtoi(text, &id) || id >= count) {
    return NoSuch(what, text, count);
  }
  return id;
}

// "7" or "0-3".
absl::StatusOr<ExpertRange> ParseRange(absl::string_view text, int64_t count) {
  const size_t dash = text.find('-');
  ExpertRange range;
  ASSIGN_OR_RETURN(range.first, ParseId("expert", text.substr(0, dash), count));
  range.end = range.first + 1;
  if (dash != absl::string_view::npos) {
    ASSIGN_OR_RETURN(const int64_t last,
                     ParseId("expert", text.substr(dash + 1), count));
    range.end = last + 1;
  }
  if (range.size() > 0) return range;
  return absl::InvalidArgumentError(
      absl::StrCat("the range ", text, " is reversed"));
}

absl::Status CheckLayer(int64_t layer, const ModelConfig& model) {
  if (layer < 0 || layer >= model.num_layers) {
    return NoSuch("layer", absl::StrCat(layer), model.num_layers);
  }
  if (!model.layers[layer].is_moe) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, " of the model has no experts"));
  }
  return absl::OkStatus();
}

// Marks the slots of one "EXPERTS" or "EXPERTS@LAYER" in `marked`
// [num_layers, num_experts].
absl::Status MarkSlots(absl::string_view part, const ModelConfig& model,
                       std::vector<bool>* marked) {
  const size_t at = part.find('@');
  const bool names_layer = at != absl::string_view::npos;
  ASSIGN_OR_RETURN(const ExpertRange experts,
                   ParseRange(part.substr(0, at), model.num_experts));
  int64_t layer = 0, end_layer = model.num_layers;
  if (names_layer) {
    ASSIGN_OR_RETURN(layer,
                     ParseId("layer", part.substr(at + 1), model.num_layers));
    RETURN_IF_ERROR(CheckLayer(layer, model));
    end_layer = layer + 1;
  }
  for (; layer < end_layer; ++layer) {
    if (!model.layers[layer].is_moe) continue;
    for (int64_t expert = experts.first; expert < experts.end; ++expert) {
      auto mark = (*marked)[layer * model.num_experts + expert];
      if (mark) {
        return absl::InvalidArgumentError(absl::StrCat(
            "expert ", expert, " of layer ", layer, " is named twice"));
      }
      mark = true;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<ExpertSlot>> ParseSlots(absl::string_view text,
                                                   const ModelConfig& model) {
  std::vector<bool> marked(model.num_layers * model.num_experts);
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const absl::Status status = MarkSlots(part, model, &marked);
    if (status.ok()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(Quoted(text), ": ", status.message(),
                     "; expected experts such as 0-3,7, or 17@3 for expert 17 "
                     "of layer 3"));
  }
  std::vector<ExpertSlot> slots;
  for (int64_t i = 0; i < static_cast<int64_t>(marked.size()); ++i) {
    if (!marked[i]) continue;
    slots.push_back({i / model.num_experts, i % model.num_experts});
  }
  return slots;
}

absl::StatusOr<std::vector<ExpertSlot>> ParseSlotList(
    absl::string_view text, const ModelConfig& model) {
  if (text == "none") return std::vector<ExpertSlot>();
  if (text.empty()) {
    return ParseSlots(absl::StrCat("0-", model.num_experts - 1), model);
  }
  return ParseSlots(text, model);
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
      return NoSuch("expert", absl::StrCat(slot.expert), model.num_experts);
    }
  }
  return absl::OkStatus();
}

}  // namespace expertmesh
