#include "services/checkpoint/memory_plan.h"

#include "services/checkpoint/required_tensors.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

// The router packs each matrix in its stored type, unless --router-dtype asks
// for fewer bits.
absl::StatusOr<int64_t> RouterWeightBytes(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  const ModelTensorNames names = checkpoint.family().ModelNames();
  int64_t bytes = 0;
  const auto add = [&](const RequiredTensor& required) -> absl::Status {
    ASSIGN_OR_RETURN(const TensorView tensor,
                     checkpoint.Tensor(required.name, required.shape));
    const absl::Span<const int64_t> shape = tensor.shape;
    const int64_t packed =
        shape.size() == 2
            ? PackedBytes(shape[0], shape[1], FormatOf(tensor.dtype))
            : shape[0] * static_cast<int64_t>(sizeof(float));
    if (required.name != names.embed_tokens) {
      bytes += packed;
      return absl::OkStatus();
    }
    // The table is looked up where the file is mapped; a tied head is packed
    // from it.
    bytes += static_cast<int64_t>(tensor.size_bytes());
    if (config.tie_word_embeddings) bytes += packed;
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(VisitRouterTensors(config, checkpoint.family(), add));
  return bytes;
}

}  // namespace

int64_t ExpertBytes(const ModelConfig& config, WeightFormat format) {
  const int64_t hidden = config.hidden_size;
  const int64_t intermediate = config.expert_intermediate_size;
  return 2 * PackedBytes(intermediate, hidden, format) +
         PackedBytes(hidden, intermediate, format);
}

int64_t KvBytesPerToken(const ModelConfig& config, KvFormat format) {
  return 2 * config.num_layers * config.num_kv_heads *
         KvPageBytes(config.head_dim, format) / kPageTokens;
}

absl::StatusOr<MemoryPlan> PlanMemory(const Checkpoint& checkpoint,
                                      const MemoryPlanOptions& options) {
  const ModelConfig& config = checkpoint.config();
  ASSIGN_OR_RETURN(
      const std::vector<ExpertRange> ranges,
      SplitExperts(config.num_experts, options.num_expert_services));
  MemoryPlan plan;
  ASSIGN_OR_RETURN(plan.router_weight_bytes, RouterWeightBytes(checkpoint));
  plan.kv_bytes_per_token = KvBytesPerToken(config, options.kv_format);
  plan.expert_bytes = ExpertBytes(config, options.expert_format);
  for (const ExpertRange& range : ranges) {
    plan.expert_services.push_back(
        {range, range.size() * config.num_moe_layers() * plan.expert_bytes});
  }
  return plan;
}

int64_t RouterMatrixBytes(const Checkpoint& checkpoint) {
  const ModelTensorNames names = checkpoint.family().ModelNames();
  int64_t bytes = 0;
  const auto add = [&](const RequiredTensor& required) {
    const auto tensor = checkpoint.Tensor(required.name, required.shape);
    const bool is_packed =
        required.shape.size() == 2 && (required.name != names.embed_tokens ||
                                       checkpoint.config().tie_word_embeddings);
    if (tensor.ok() && is_packed) {
      bytes += static_cast<int64_t>(tensor->size_bytes());
    }
    return absl::OkStatus();
  };
  VisitRouterTensors(checkpoint.config(), checkpoint.family(), add)
      .IgnoreError();  // `add` has none
  return bytes;
}

}  // namespace expertmesh
