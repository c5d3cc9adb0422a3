#include "services/checkpoint/required_tensors.h"

#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

absl::Status VisitAttention(const ModelConfig& config,
                            const AttentionTensorNames& names,
                            TensorVisitor visit) {
  const int64_t hidden = config.hidden_size;
  const int64_t q = config.q_size();
  const int64_t kv = config.kv_size();
  RETURN_IF_ERROR(visit({names.input_norm, {hidden}}));
  RETURN_IF_ERROR(visit({names.q_proj + ".weight", {q, hidden}}));
  RETURN_IF_ERROR(visit({names.k_proj + ".weight", {kv, hidden}}));
  RETURN_IF_ERROR(visit({names.v_proj + ".weight", {kv, hidden}}));
  RETURN_IF_ERROR(visit({names.o_proj + ".weight", {hidden, q}}));
  if (config.qkv_bias) {
    RETURN_IF_ERROR(visit({names.q_proj + ".bias", {q}}));
    RETURN_IF_ERROR(visit({names.k_proj + ".bias", {kv}}));
    RETURN_IF_ERROR(visit({names.v_proj + ".bias", {kv}}));
  }
  if (config.o_bias) {
    RETURN_IF_ERROR(visit({names.o_proj + ".bias", {hidden}}));
  }
  if (config.qk_norm != QkNorm::kNone) {
    const bool per_head = config.qk_norm == QkNorm::kPerHead;
    RETURN_IF_ERROR(visit({names.q_norm, {per_head ? config.head_dim : q}}));
    RETURN_IF_ERROR(visit({names.k_norm, {per_head ? config.head_dim : kv}}));
  }
  return absl::OkStatus();
}

// A SiLU-gated feed-forward of width `intermediate`.
absl::Status VisitGatedMlp(const std::string& gate_proj,
                           const std::string& up_proj,
                           const std::string& down_proj, int64_t hidden,
                           int64_t intermediate, TensorVisitor visit) {
  RETURN_IF_ERROR(visit({gate_proj, {intermediate, hidden}}));
  RETURN_IF_ERROR(visit({up_proj, {intermediate, hidden}}));
  return visit({down_proj, {hidden, intermediate}});
}

absl::Status VisitFeedForward(const ModelConfig& config, bool is_moe,
                              const FeedForwardTensorNames& names,
                              TensorVisitor visit) {
  const int64_t hidden = config.hidden_size;
  RETURN_IF_ERROR(visit({names.norm, {hidden}}));
  if (!is_moe) {
    return VisitGatedMlp(names.dense_gate_proj, names.dense_up_proj,
                         names.dense_down_proj, hidden,
                         config.dense_intermediate_size, visit);
  }
  RETURN_IF_ERROR(visit({names.gate, {config.num_experts, hidden}}));
  if (config.shared_expert_gate) {
    RETURN_IF_ERROR(visit({names.shared_expert_gate, {1, hidden}}));
  }
  if (config.shared_intermediate_size == 0) return absl::OkStatus();
  return VisitGatedMlp(names.shared_gate_proj, names.shared_up_proj,
                       names.shared_down_proj, hidden,
                       config.shared_intermediate_size, visit);
}

absl::Status VisitExpert(const ModelConfig& config, const ModelFamily& family,
                         int64_t layer, int64_t expert, TensorVisitor visit) {
  const ExpertTensorNames names = family.ExpertNames(layer, expert);
  return VisitGatedMlp(names.gate_proj, names.up_proj, names.down_proj,
                       config.hidden_size, config.expert_intermediate_size,
                       visit);
}

}  // namespace

absl::Status VisitRouterTensors(const ModelConfig& config,
                                const ModelFamily& family,
                                TensorVisitor visit) {
  const ModelTensorNames names = family.ModelNames();
  const int64_t hidden = config.hidden_size;
  RETURN_IF_ERROR(visit({names.embed_tokens, {config.vocab_size, hidden}}));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    RETURN_IF_ERROR(
        VisitAttention(config, family.AttentionNames(layer), visit));
    RETURN_IF_ERROR(VisitFeedForward(config, config.layers[layer].is_moe,
                                     family.FeedForwardNames(layer), visit));
  }
  RETURN_IF_ERROR(visit({names.final_norm, {hidden}}));
  if (config.tie_word_embeddings) return absl::OkStatus();
  return visit({names.lm_head, {config.vocab_size, hidden}});
}

absl::Status VisitExpertTensors(const ModelConfig& config,
                                const ModelFamily& family,
                                TensorVisitor visit) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].is_moe) continue;
    for (int64_t expert = 0; expert < config.num_experts; ++expert) {
      RETURN_IF_ERROR(VisitExpert(config, family, layer, expert, visit));
    }
  }
  return absl::OkStatus();
}

absl::Status VisitSampledTensors(const ModelConfig& config,
                                 const ModelFamily& family,
                                 TensorVisitor visit) {
  RETURN_IF_ERROR(VisitRouterTensors(config, family, visit));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].is_moe) continue;
    for (const int64_t expert : {int64_t{0}, config.num_experts - 1}) {
      RETURN_IF_ERROR(VisitExpert(config, family, layer, expert, visit));
    }
  }
  return absl::OkStatus();
}

}  // namespace expertmesh
