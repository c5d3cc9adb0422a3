#include <limits>
#include <string>
#include <vector>

#include "services/checkpoint/families/decoder_family.h"
#include "services/checkpoint/families/families.h"
#include "services/checkpoint/json_reader.h"

namespace expertmesh {
namespace {

constexpr int64_t kAnyLayerCount = std::numeric_limits<int32_t>::max();

// Windows by layer_types where given; else, as in the reference, on every other
// layer from the first, below max_window_layers. None unless switched on.
void ParseWindows(ConfigReader& reader, ModelConfig& config) {
  if (!reader.BoolOr("use_sliding_window", false)) return;
  const int64_t window = reader.Size({"sliding_window"});
  const int64_t max_window_layers =
      reader.OptionalInteger("max_window_layers", 0, kAnyLayerCount)
          .value_or(28);
  const std::vector<std::string> types = reader.StringList("layer_types");
  if (!types.empty() && types.size() != config.layers.size()) {
    reader.Fail("layer_types", "lists ", types.size(), " layers of ",
                config.num_layers);
    return;
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    bool windowed = layer % 2 == 0 && layer < max_window_layers;
    if (!types.empty()) {
      windowed = types[layer] == "sliding_attention";
      if (!windowed && types[layer] != "full_attention") {
        reader.Fail("layer_types", Quoted(types[layer]), " is not supported");
      }
    }
    if (windowed) config.layers[layer].sliding_window = window;
  }
}

class Qwen2Moe : public DecoderFamily {
 public:
  absl::string_view model_type() const override { return "qwen2_moe"; }

  absl::StatusOr<ModelConfig> ParseConfig(ConfigReader& reader) const override {
    ModelConfig config = ParseDecoder(
        reader, {.norm_eps = 1e-6, .rope_theta = 1e4, .num_kv_heads = 16});
    config.qkv_bias = reader.BoolOr("qkv_bias", true);
    config.norm_topk_prob = reader.BoolOr("norm_topk_prob", false);
    config.expert_intermediate_size = reader.Size({"moe_intermediate_size"});
    config.shared_intermediate_size =
        reader.Size({"shared_expert_intermediate_size"});
    config.shared_expert_gate = true;
    ParseSparseLayers(reader, config);
    ParseWindows(reader, config);
    if (!reader.status().ok()) return reader.status();
    return config;
  }
};

}  // namespace

const ModelFamily& Qwen2MoeFamily() {
  static const Qwen2Moe family;
  return family;
}

}  // namespace expertmesh
