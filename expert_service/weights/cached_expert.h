#pragma once

// Packed experts by way of a cache on disk.

#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/slot_list.h"
#include "services/linalg/weight_format.h"
#include "services/pack_cache/pack_cache.h"

namespace expertmesh::expert {

// What the cache has of a slot, or what `pack` gives, which the cache then
// keeps. `format` as in LoadExpert. `has_tensors`: whether the slot's tensors
// are in the checkpoint's files, so that some of their bytes can be compared
// with those that were packed; else the fingerprint alone tells.
// Errors: those of `pack`; FAILED_PRECONDITION naming file and tensor.
absl::StatusOr<PackedExpert> LoadCachedExpert(
    const Checkpoint& checkpoint, ExpertSlot slot,
    std::optional<WeightFormat> format, bool has_tensors, PackCache& cache,
    absl::FunctionRef<absl::StatusOr<PackedExpert>()> pack);

}  // namespace expertmesh::expert
