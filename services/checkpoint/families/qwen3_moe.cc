#include "services/checkpoint/families/decoder_family.h"
#include "services/checkpoint/families/families.h"

namespace expertmesh {
namespace {

class Qwen3Moe : public DecoderFamily {
 public:
  absl::string_view model_type() const override { return "qwen3_moe"; }

  absl::StatusOr<ModelConfig> ParseConfig(ConfigReader& reader) const override {
    ModelConfig config = ParseDecoder(
        reader, {.norm_eps = 1e-6, .rope_theta = 1e4, .num_kv_heads = 4});
    config.qk_norm = QkNorm::kPerHead;
    config.qkv_bias = reader.BoolOr("attention_bias", false);
    config.o_bias = config.qkv_bias;
    config.norm_topk_prob = reader.BoolOr("norm_topk_prob", false);
    config.expert_intermediate_size = reader.Size({"moe_intermediate_size"});
    ParseSparseLayers(reader, config);
    // A window may be given and yet be off; switched on it holds everywhere.
    if (reader.BoolOr("use_sliding_window", false)) {
      const std::optional<int64_t> window =
          reader.OptionalSize("sliding_window");
      for (LayerConfig& layer : config.layers) layer.sliding_window = window;
    }
    if (!reader.status().ok()) return reader.status();
    return config;
  }
};

}  // namespace

const ModelFamily& Qwen3MoeFamily() {
  static const Qwen3Moe family;
  return family;
}

}  // namespace expertmesh
