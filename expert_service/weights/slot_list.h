#pragma once

// Which slots a service is told to hold: flags and orders.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "expert_service/weights/expert_weights.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh::expert {

// Parses "0-3,7,17@3": ids and ranges stand for every MoE layer, those with @
// for one layer. "": all slots; "none": no slot. Returns them ascending by
// layer, then expert.
// Errors: INVALID_ARGUMENT for anything else, for what the model lacks, and for
// a slot named twice.
absl::StatusOr<std::vector<ExpertSlot>> ParseSlotList(absl::string_view text,
                                                      const ModelConfig& model);

// The inverse, in a normal form. `slots` are distinct slots of the model.
std::string FormatSlotList(absl::Span<const ExpertSlot> slots,
                           const ModelConfig& model);

// OK when the model has all these slots. Errors: INVALID_ARGUMENT naming the
// first it lacks.
absl::Status CheckSlots(absl::Span<const ExpertSlot> slots,
                        const ModelConfig& model);

}  // namespace expertmesh::expert
