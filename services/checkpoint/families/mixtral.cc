#include "absl/strings/str_cat.h"
#include "services/checkpoint/families/decoder_family.h"
#include "services/checkpoint/families/families.h"

namespace expertmesh {
namespace {

class Mixtral : public DecoderFamily {
 public:
  absl::string_view model_type() const override { return "mixtral"; }

  absl::StatusOr<ModelConfig> ParseConfig(ConfigReader& reader) const override {
    ModelConfig config = ParseDecoder(
        reader, {.norm_eps = 1e-5, .rope_theta = 1e6, .num_kv_heads = 8});
    config.norm_topk_prob = true;
    config.expert_intermediate_size = reader.Size({"intermediate_size"});
    const std::optional<int64_t> window = reader.OptionalSize("sliding_window");
    for (LayerConfig& layer : config.layers) layer.sliding_window = window;
    if (!reader.status().ok()) return reader.status();
    return config;
  }

  FeedForwardTensorNames FeedForwardNames(int64_t layer) const override {
    const std::string prefix = LayerPrefix(layer);
    FeedForwardTensorNames names;
    names.norm = prefix + "post_attention_layernorm.weight";
    names.gate = prefix + "block_sparse_moe.gate.weight";
    return names;
  }

  ExpertTensorNames ExpertNames(int64_t layer, int64_t expert) const override {
    const std::string prefix = absl::StrCat(
        LayerPrefix(layer), "block_sparse_moe.experts.", expert, ".");
    return {.gate_proj = prefix + "w1.weight",
            .up_proj = prefix + "w3.weight",
            .down_proj = prefix + "w2.weight"};
  }
};

}  // namespace

const ModelFamily& MixtralFamily() {
  static const Mixtral family;
  return family;
}

}  // namespace expertmesh
