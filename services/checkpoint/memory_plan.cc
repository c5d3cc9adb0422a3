#include "services/checkpoint/memory_plan.h"

#include "services/checkpoint/required_tensors.h"
#include "services/core/status_macros.h"
#include "services/linalg/gemm.h"

namespace expertmesh {
namespace {

int64_t RouterWeightBytes(const ModelConfig& config, const ModelFamily& family,
                          DType dtype) {
  const int64_t embedding_elements = config.vocab_size * config.hidden_size;
  const int64_t head_bytes =
      PackedBytes(config.vocab_size, config.hidden_size, dtype);
  const ModelTensorNames names = family.ModelNames();
  // The table is looked up where the file is mapped; the head is packed from it
  // or from a tensor of its own.
  int64_t bytes =
      embedding_elements * static_cast<int64_t>(DTypeBytes(dtype)) + head_bytes;
  const absl::Status visited =
      VisitRouterTensors(config, family, [&](const RequiredTensor& tensor) {
        if (tensor.name == names.embed_tokens || tensor.name == names.lm_head) {
          return absl::OkStatus();
        }
        bytes += tensor.shape.size() == 2
                     ? PackedBytes(tensor.shape[0], tensor.shape[1], dtype)
                     : tensor.shape[0] * static_cast<int64_t>(sizeof(float));
        return absl::OkStatus();
      });
  visited.IgnoreError();  // the visitor refuses nothing
  return bytes;
}

}  // namespace

int64_t ExpertBytes(const ModelConfig& config, DType dtype) {
  const int64_t hidden = config.hidden_size;
  const int64_t intermediate = config.expert_intermediate_size;
  return 2 * PackedBytes(intermediate, hidden, dtype) +
         PackedBytes(hidden, intermediate, dtype);
}

int64_t PackedBytes(int64_t n, int64_t k, DType dtype) {
  const int64_t panels = (n + kPanelWidth - 1) / kPanelWidth;
  // Sixteen-bit types lie in pairs along k.
  const int64_t words = dtype == DType::kF32 ? k : (k + 1) / 2;
  return panels * words * kPanelWidth * static_cast<int64_t>(sizeof(uint32_t));
}

absl::StatusOr<MemoryPlan> PlanMemory(const ModelConfig& config,
                                      const ModelFamily& family,
                                      const MemoryPlanOptions& options) {
  ASSIGN_OR_RETURN(
      const std::vector<ExpertRange> ranges,
      SplitExperts(config.num_experts, options.num_expert_services));
  MemoryPlan plan;
  plan.router_weight_bytes =
      RouterWeightBytes(config, family, options.dense_dtype);
  plan.kv_bytes_per_token = 2 * config.num_layers * config.kv_size() *
                            static_cast<int64_t>(DTypeBytes(options.kv_dtype));
  plan.expert_bytes = ExpertBytes(config, options.expert_dtype);
  for (const ExpertRange& range : ranges) {
    plan.expert_services.push_back(
        {range, range.size() * config.num_moe_layers() * plan.expert_bytes});
  }
  return plan;
}

}  // namespace expertmesh
