#pragma once

// Where the experts of a service come from: a checkpoint's folder, peers that
// have one, a cache of what was packed before.

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "expert_service/weights/expert_weights.h"
#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/slot_list.h"
#include "services/linalg/weight_format.h"
#include "services/pack_cache/pack_cache.h"
#include "services/weights_transfer/weight_source.h"

namespace expertmesh::expert {

// Gives any slot of one checkpoint, in one format for all. Thread-safe.
class SlotSource {
 public:
  struct Options {
    std::string model;  // folder
    // Instead of the folder, where that is not there.
    std::optional<WeightSource::Options> peers = std::nullopt;
    std::optional<WeightFormat> format = std::nullopt;  // unset: as stored
    std::string pack_cache = {};                        // folder; empty: none
  };

  // Errors: those of Checkpoint::Open, WeightSource::Open and PackedFormat.
  static absl::StatusOr<std::unique_ptr<SlotSource>> Open(
      const Options& options);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  WeightFormat format() const { return format_; }
  // Null: none.
  const PackCache* pack_cache() const { return pack_cache_.get(); }
  uint64_t pulled_bytes() const {
    return source_ == nullptr ? 0 : source_->pulled_bytes();
  }
  // Whether a tensor's bytes [0, end) are on this host.
  bool IsHere(absl::string_view tensor, uint64_t end) const {
    return source_ == nullptr || source_->Has(tensor, end);
  }

  // Errors: as LoadExpert; FAILED_PRECONDITION for a slot of another format;
  // those of pulling; CANCELLED.
  absl::StatusOr<PackedExpert> Packed(ExpertSlot slot,
                                      const std::stop_token& stop) const;
  // What `use` makes of the slot's tensors as they are; their pages are let go
  // of afterwards. Errors: likewise, and those of `use`.
  absl::StatusOr<ExpertWeights::Expert> FromTensors(
      ExpertSlot slot, const std::stop_token& stop,
      absl::FunctionRef<
          absl::StatusOr<ExpertWeights::Expert>(const ExpertTensors&)>
          use) const;

 private:
  explicit SlotSource(std::optional<WeightFormat> wanted) : wanted_(wanted) {}

  // Pulls a slot's tensors where there is no folder.
  absl::Status Fetch(ExpertSlot slot, const std::stop_token& stop) const;
  // What the service announces, and the kernel, hold for all experts.
  absl::Status CheckFormat(ExpertSlot slot, WeightFormat format) const;
  absl::StatusOr<PackedExpert> Pack(ExpertSlot slot,
                                    const std::stop_token& stop) const;

  const std::optional<WeightFormat> wanted_;
  WeightFormat format_ = WeightFormat::kF32;
  std::unique_ptr<WeightSource> source_;  // null with a folder
  std::unique_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<PackCache> pack_cache_;
};

}  // namespace expertmesh::expert
