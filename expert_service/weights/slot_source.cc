#include "expert_service/weights/slot_source.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "expert_service/weights/cached_expert.h"
#include "expert_service/weights/expert_loader.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {

absl::StatusOr<std::unique_ptr<SlotSource>> SlotSource::Open(
    const Options& options) {
  std::unique_ptr<SlotSource> slots(new SlotSource(options.format));
  std::error_code ignored;
  if (options.peers.has_value() &&
      !std::filesystem::is_directory(options.model, ignored)) {
    ASSIGN_OR_RETURN(slots->source_, WeightSource::Open(*options.peers));
    ASSIGN_OR_RETURN(slots->checkpoint_,
                     Checkpoint::Open(slots->source_->directory(),
                                      Checkpoint::Data::kPartial));
  } else {
    ASSIGN_OR_RETURN(slots->checkpoint_, Checkpoint::Open(options.model));
  }
  ASSIGN_OR_RETURN(slots->format_,
                   PackedFormat(*slots->checkpoint_, options.format));
  if (!options.pack_cache.empty()) {
    slots->pack_cache_ = std::make_unique<PackCache>(
        options.pack_cache, slots->checkpoint_->local_id());
  }
  return slots;
}

absl::StatusOr<PackedExpert> SlotSource::Packed(
    ExpertSlot slot, const std::stop_token& stop) const {
  const auto pack = [&] { return Pack(slot, stop); };
  if (pack_cache_ == nullptr) return pack();
  return LoadCachedExpert(*checkpoint_, slot, wanted_,
                          /*has_tensors=*/source_ == nullptr, *pack_cache_,
                          pack);
}

absl::StatusOr<ExpertWeights::Expert> SlotSource::FromTensors(
    ExpertSlot slot, const std::stop_token& stop,
    absl::FunctionRef<
        absl::StatusOr<ExpertWeights::Expert>(const ExpertTensors&)>
        use) const {
  RETURN_IF_ERROR(Fetch(slot, stop));
  ASSIGN_OR_RETURN(const ExpertTensors tensors,
                   TensorsOf(*checkpoint_, slot, wanted_));
  RETURN_IF_ERROR(
      CheckFormat(slot, wanted_.value_or(FormatOf(tensors.gate_proj.dtype))));
  const TensorView* const all[] = {&tensors.gate_proj, &tensors.up_proj,
                                   &tensors.down_proj};
  for (const TensorView* tensor : all) checkpoint_->Prefetch(*tensor);
  auto expert = use(tensors);
  for (const TensorView* tensor : all) checkpoint_->Release(*tensor);
  return expert;
}

absl::Status SlotSource::Fetch(ExpertSlot slot,
                               const std::stop_token& stop) const {
  if (source_ == nullptr) return absl::OkStatus();
  const ExpertTensorNames names =
      checkpoint_->family().ExpertNames(slot.layer, slot.expert);
  RETURN_IF_ERROR(source_->Fetch(names.gate_proj, stop));
  RETURN_IF_ERROR(source_->Fetch(names.up_proj, stop));
  return source_->Fetch(names.down_proj, stop);
}

absl::Status SlotSource::CheckFormat(ExpertSlot slot,
                                     WeightFormat format) const {
  if (format == format_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("expert ", slot.expert, " of layer ", slot.layer, " is ",
                   WeightFormatName(format), ", but the first one is ",
                   WeightFormatName(format_),
                   "; name one type to convert them to with --expert-dtype"));
}

absl::StatusOr<PackedExpert> SlotSource::Pack(
    ExpertSlot slot, const std::stop_token& stop) const {
  RETURN_IF_ERROR(Fetch(slot, stop));
  ASSIGN_OR_RETURN(PackedExpert expert,
                   LoadExpert(*checkpoint_, slot, wanted_));
  RETURN_IF_ERROR(CheckFormat(slot, expert.gate_proj.format()));
  return expert;
}

}  // namespace expertmesh::expert
