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
#include "services/core/dtype.h"
#include "services/core/worker_pool.h"

namespace expertmesh::expert {

// Reads and packs one slot; called from any thread. May end with CANCELLED once
// a stop is requested.
using SlotLoader = std::function<absl::StatusOr<PackedExpert>(
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
  // Type of the packed weights: f32 or bf16; unset keeps the checkpoint's.
  std::optional<DType> dtype = std::nullopt;
  // Spreads slots over threads; unset: the caller's thread alone.
  WorkerPool* pool = nullptr;
  // Called after each slot, one call at a time but from any of the threads.
  std::function<void(int64_t loaded_slots, int64_t total_slots)> progress =
      nullptr;
};

// Packs one expert. Reads only its three tensors and lets go of their pages
// afterwards, so that weights are resident once.
// Errors: FAILED_PRECONDITION naming file and tensor; INVALID_ARGUMENT for a
// type that weights cannot be converted to.
absl::StatusOr<PackedExpert> LoadExpert(const Checkpoint& checkpoint,
                                        ExpertSlot slot,
                                        std::optional<DType> dtype);

// Packs the given experts of all MoE layers, layer by layer.
// Errors: as LoadExpert; INVALID_ARGUMENT for an expert id that the model lacks
// or that is named twice.
absl::StatusOr<std::unique_ptr<const ExpertWeights>> LoadExperts(
    const Checkpoint& checkpoint, const ExpertLoadOptions& options);

// The type that slots of this checkpoint are packed in: `dtype`, or where that
// is unset the one of its first expert's tensors.
// Errors: FAILED_PRECONDITION naming file and tensor.
absl::StatusOr<DType> PackedType(const Checkpoint& checkpoint,
                                 std::optional<DType> dtype);
// What one packed slot takes.
size_t PackedSlotBytes(const ModelConfig& model, DType dtype);

}  // namespace expertmesh::expert
