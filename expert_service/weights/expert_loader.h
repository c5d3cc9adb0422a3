#pragma once

// Tensors of a checkpoint → packed expert weights.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <vector>

#include "absl/status/statusor.h"
#include "expert_service/weights/expert_weights.h"
#include "services/checkpoint/checkpoint.h"
#include "services/core/worker_pool.h"
#include "services/linalg/weight_format.h"

namespace expertmesh::expert {

// Loads one slot for the kernel in use; called from any thread. May end with
// CANCELLED once a stop is requested.
using SlotLoader = std::function<absl::StatusOr<ExpertWeights::Expert>(
    ExpertSlot, const std::stop_token&)>;

// How several slots are loaded.
struct SlotLoadOptions {
  // Spreads slots over threads; unset: the caller's thread alone.
  WorkerPool* pool = nullptr;
  // Called after each slot, one call at a time but from any of the threads.
  std::function<void(int64_t loaded_slots, int64_t total_slots)> progress =
      nullptr;
  // A stop that is requested before the last slot is there gives all up.
  std::stop_token stop = {};
};

// Loads all slots, in their order, or none. Errors: the loader's; CANCELLED;
// RESOURCE_EXHAUSTED where memory ends.
absl::StatusOr<std::vector<ExpertWeights::Expert>> LoadSlots(
    absl::Span<const ExpertSlot> slots, const SlotLoader& load,
    const SlotLoadOptions& options);

struct ExpertLoadOptions {
  // Loaded in every MoE layer. Distinct.
  std::vector<int64_t> experts = {};
  // Of the packed weights; unset keeps the checkpoint's type.
  std::optional<WeightFormat> format = std::nullopt;
  // Spreads slots over threads; unset: the caller's thread alone.
  WorkerPool* pool = nullptr;
  // Called after each slot, one call at a time but from any of the threads.
  std::function<void(int64_t loaded_slots, int64_t total_slots)> progress =
      nullptr;
};

// The tensors of one expert, where they lie in the checkpoint; of one type
// unless `format` names what they become.
// Errors: FAILED_PRECONDITION naming file and tensor.
absl::StatusOr<ExpertTensors> TensorsOf(const Checkpoint& checkpoint,
                                        ExpertSlot slot,
                                        std::optional<WeightFormat> format);

// Packs one expert. Reads only its three tensors and lets go of their pages
// afterwards, so that weights are resident once.
// Errors: FAILED_PRECONDITION naming file and tensor; INVALID_ARGUMENT for
// weights that do not go into the format.
absl::StatusOr<PackedExpert> LoadExpert(const Checkpoint& checkpoint,
                                        ExpertSlot slot,
                                        std::optional<WeightFormat> format);

// As SlotLoader gives it, where there is one.
absl::StatusOr<ExpertWeights::Expert> AsLoaded(
    absl::StatusOr<PackedExpert> expert);

// Packs the given experts of all MoE layers, layer by layer.
// Errors: as LoadExpert; INVALID_ARGUMENT for an expert id that the model lacks
// or that is named twice.
absl::StatusOr<std::unique_ptr<const ExpertWeights>> LoadExperts(
    const Checkpoint& checkpoint, const ExpertLoadOptions& options);

// The format that slots of this checkpoint are packed in: `format`, or where
// that is unset the type of its first expert's tensors.
// Errors: FAILED_PRECONDITION naming file and tensor.
absl::StatusOr<WeightFormat> PackedFormat(const Checkpoint& checkpoint,
                                          std::optional<WeightFormat> format);

}  // namespace expertmesh::expert
