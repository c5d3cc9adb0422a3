#include "services/checkpoint/model_config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

// More parameters than any checkpoint has. Below it every product of sizes,
// in bytes too, fits int64.
constexpr double kMaxParameters = 1e15;

double ParameterEstimate(const ModelConfig& config) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const double attention =
      static_cast<double>(config.num_heads + config.num_kv_heads) *
      static_cast<double>(config.head_dim) * 2.0;
  const double experts = static_cast<double>(config.num_experts) *
                         static_cast<double>(config.expert_intermediate_size);
  const double ffn =
      3.0 * (experts + static_cast<double>(config.dense_intermediate_size +
                                           config.shared_intermediate_size));
  return hidden * (2.0 * static_cast<double>(config.vocab_size) +
                   static_cast<double>(config.num_layers) * (attention + ffn));
}

}  // namespace

int64_t ModelConfig::num_moe_layers() const {
  return std::count_if(layers.begin(), layers.end(),
                       [](const LayerConfig& layer) { return layer.is_moe; });
}

absl::Status ValidateModelConfig(absl::string_view file,
                                 const ModelConfig& config) {
  const auto fault = [file](const auto&... message) {
    return absl::FailedPreconditionError(absl::StrCat(file, ": ", message...));
  };
  if (config.num_heads % config.num_kv_heads != 0) {
    return fault("num_attention_heads (", config.num_heads,
                 ") is not a multiple of num_key_value_heads (",
                 config.num_kv_heads, ")");
  }
  if (config.top_k > config.num_experts) {
    return fault("num_experts_per_tok (", config.top_k,
                 ") exceeds the number of experts (", config.num_experts, ")");
  }
  if (config.rope.rotary_dim < 2 || config.rope.rotary_dim % 2 != 0 ||
      config.rope.rotary_dim > config.head_dim) {
    return fault("head_dim (", config.head_dim, ") gives ",
                 config.rope.rotary_dim,
                 " rotary dimensions, which must be even and at least 2");
  }
  if (config.num_moe_layers() == 0) {
    return fault("none of the ", config.num_layers,
                 " layers is a mixture of experts");
  }
  if (ParameterEstimate(config) > kMaxParameters) {
    return fault("its sizes describe a model of more than ", kMaxParameters,
                 " parameters");
  }
  return absl::OkStatus();
}

}  // namespace expertmesh
