#pragma once

// What the pre-norm decoder families share: grouped-query attention, RMS norms,
// RoPE over half heads, SiLU-gated feed-forward, and the names of Llama.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "services/checkpoint/config_reader.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh {

// Values that stand in for absent fields, as in the family's reference.
struct DecoderDefaults {
  double norm_eps = 1e-6;
  double rope_theta = 10000.0;
  // num_key_value_heads; unset, or written as null: num_attention_heads.
  std::optional<int64_t> num_kv_heads = std::nullopt;
};

// The fields every decoder family has. All layers are MoE and see all keys; the
// family's own fields come after. Faults stay in the reader.
ModelConfig ParseDecoder(ConfigReader& reader, const DecoderDefaults& defaults);

// Qwen's rule: layer i is MoE when (i + 1) is a multiple of decoder_sparse_step
// and i is not in mlp_only_layers. Reads the width of the other layers when
// there are any.
void ParseSparseLayers(ConfigReader& reader, ModelConfig& config);

// Llama's names for everything but the feed-forward part, which is "mlp.…" here
// (Qwen, OLMoE) and may be overridden.
class DecoderFamily : public ModelFamily {
 public:
  ModelTensorNames ModelNames() const override;
  AttentionTensorNames AttentionNames(int64_t layer) const override;
  FeedForwardTensorNames FeedForwardNames(int64_t layer) const override;
  ExpertTensorNames ExpertNames(int64_t layer, int64_t expert) const override;

 protected:
  // "model.layers.<layer>."
  static std::string LayerPrefix(int64_t layer);
};

}  // namespace expertmesh
