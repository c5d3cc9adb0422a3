#include "services/checkpoint/families/decoder_family.h"
#include "services/checkpoint/families/families.h"

namespace expertmesh {
namespace {

class Olmoe : public DecoderFamily {
 public:
  absl::string_view model_type() const override { return "olmoe"; }

  absl::StatusOr<ModelConfig> ParseConfig(ConfigReader& reader) const override {
    ModelConfig config =
        ParseDecoder(reader, {.norm_eps = 1e-5, .rope_theta = 1e4});
    config.qk_norm = QkNorm::kWholeVector;
    config.qkv_bias = reader.BoolOr("attention_bias", false);
    config.o_bias = config.qkv_bias;
    if (reader.Has("clip_qkv")) {
      config.clip_qkv = static_cast<float>(reader.Positive("clip_qkv"));
    }
    config.norm_topk_prob = reader.BoolOr("norm_topk_prob", false);
    config.expert_intermediate_size = reader.Size({"intermediate_size"});
    if (!reader.status().ok()) return reader.status();
    return config;
  }
};

}  // namespace

const ModelFamily& OlmoeFamily() {
  static const Olmoe family;
  return family;
}

}  // namespace expertmesh
