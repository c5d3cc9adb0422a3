#pragma once

// Experts of layers, written down: "0-15,17@3".

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh {

// One expert of one layer; both are absolute indices.
struct ExpertSlot {
  int64_t layer = 0;
  int64_t expert = 0;

  // By layer, then expert.
  auto operator<=>(const ExpertSlot&) const = default;
};

// Parses "0-3,7,17@3": ids and ranges stand for every layer with experts, those
// with @ for one layer; spaces may stand around numbers. Returns slots
// ascending.
// Errors: INVALID_ARGUMENT, quoting the list, for anything else, for what the
// model lacks, and for a slot named twice.
absl::StatusOr<std::vector<ExpertSlot>> ParseSlots(absl::string_view text,
                                                   const ModelConfig& model);

// The same with two words more: "" are all slots, "none" is no slot.
absl::StatusOr<std::vector<ExpertSlot>> ParseSlotList(absl::string_view text,
                                                      const ModelConfig& model);

// The inverse of both, in a normal form. `slots` are distinct slots of the
// model.
std::string FormatSlotList(absl::Span<const ExpertSlot> slots,
                           const ModelConfig& model);

// OK when the model has all these slots. Errors: INVALID_ARGUMENT naming the
// first it lacks.
absl::Status CheckSlots(absl::Span<const ExpertSlot> slots,
                        const ModelConfig& model);

}  // namespace expertmesh
