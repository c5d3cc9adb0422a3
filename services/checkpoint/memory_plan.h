#pragma once

// How much memory each service of a mesh will need, from a checkpoint's
// configuration and headers; no tensor is read.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/expert_range.h"
#include "services/linalg/kv_format.h"
#include "services/linalg/weight_format.h"

namespace expertmesh {

struct MemoryPlanOptions {
  KvFormat kv_format = KvFormat::kF32;
  WeightFormat expert_format = WeightFormat::kF32;
  int64_t num_expert_services = 1;
};

struct ExpertServicePlan {
  ExpertRange experts;  // held in every MoE layer
  int64_t weight_bytes = 0;
};

// Weights as they lie in memory, the router's in the types they are stored in
// (--router-dtype=int8 or int4 takes less),
// with the padding of each matrix on its own (the router packs some together
// and saves a little of it). Workspaces and the program itself are not counted.
struct MemoryPlan {
  // Packed matrices, norms, and the mapped embedding table with all its rows
  // touched.
  int64_t router_weight_bytes = 0;
  int64_t kv_bytes_per_token = 0;  // over all layers
  int64_t expert_bytes = 0;        // one expert of one layer
  std::vector<ExpertServicePlan> expert_services;
};

// Errors: INVALID_ARGUMENT unless the experts can be split over the services.
absl::StatusOr<MemoryPlan> PlanMemory(const Checkpoint& checkpoint,
                                      const MemoryPlanOptions& options);

// What the router packs, as it lies in the checkpoint. Tensors that are missing
// or have another shape count nothing.
int64_t RouterMatrixBytes(const Checkpoint& checkpoint);

// What one packed expert of one layer takes.
int64_t ExpertBytes(const ModelConfig& config, WeightFormat format);

// What keys and values of one token take over all layers.
int64_t KvBytesPerToken(const ModelConfig& config, KvFormat format);

}  // namespace expertmesh
