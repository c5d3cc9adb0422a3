#include "services/checkpoint/families/decoder_family.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/checkpoint/families/rope_fields.h"
#include "services/checkpoint/json_reader.h"

namespace expertmesh {
namespace {

constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxPositions = int64_t{1} << 31;

void CheckActivation(ConfigReader& reader) {
  const std::string activation = reader.StringOr("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    reader.Fail("hidden_act", Quoted(activation),
                " is not supported (silu is)");
  }
}

DType ParseActivationType(ConfigReader& reader) {
  const absl::string_view field = reader.Has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = reader.StringOr(field, "float32");
  const absl::StatusOr<DType> dtype = ParseDType(name);
  if (dtype.ok()) return *dtype;
  reader.Fail(field, Quoted(name),
              " is not supported (known: float32, "
              "bfloat16, float16)");
  return DType::kF32;
}

int64_t ParseKvHeads(ConfigReader& reader, const ModelConfig& config,
                     const DecoderDefaults& defaults) {
  constexpr absl::string_view kField = "num_key_value_heads";
  const int64_t fallback =
      reader.IsNull(kField) ? config.num_heads
                            : defaults.num_kv_heads.value_or(config.num_heads);
  return reader.SizeOr(kField, fallback);
}

int64_t ParseHeadDim(ConfigReader& reader, const ModelConfig& config) {
  const std::optional<int64_t> head_dim = reader.OptionalSize("head_dim");
  if (head_dim.has_value()) return *head_dim;
  if (config.hidden_size % config.num_heads != 0) {
    reader.Fail("hidden_size", "(", config.hidden_size,
                ") is not a multiple of num_attention_heads (",
                config.num_heads, "), and head_dim is absent");
  }
  return std::max<int64_t>(1, config.hidden_size / config.num_heads);
}

}  // namespace

ModelConfig ParseDecoder(ConfigReader& reader,
                         const DecoderDefaults& defaults) {
  ModelConfig config;
  config.dtype = ParseActivationType(reader);
  config.vocab_size = reader.Size({"vocab_size"});
  config.hidden_size = reader.Size({"hidden_size"});
  config.num_layers = reader.Size({"num_hidden_layers"}, kMaxLayers);
  config.num_heads = reader.Size({"num_attention_heads"});
  config.num_kv_heads = ParseKvHeads(reader, config, defaults);
  config.head_dim = ParseHeadDim(reader, config);
  config.max_position_embeddings =
      reader.Size({"max_position_embeddings"}, kMaxPositions);
  config.norm_eps = reader.PositiveOr("rms_norm_eps", defaults.norm_eps);
  config.tie_word_embeddings = reader.BoolOr("tie_word_embeddings", false);
  config.rope = ParseRope(reader, config.head_dim,
                          config.max_position_embeddings, defaults.rope_theta);
  CheckActivation(reader);
  config.num_experts = reader.Size({"num_experts", "num_local_experts"});
  config.top_k = reader.Size({"num_experts_per_tok"});
  config.layers.resize(static_cast<size_t>(config.num_layers));
  return config;
}

void ParseSparseLayers(ConfigReader& reader, ModelConfig& config) {
  const int64_t step = reader.SizeOr("decoder_sparse_step", 1);
  const std::vector<int64_t> dense =
      reader.IntegerList("mlp_only_layers", kMaxLayers);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool listed =
        std::find(dense.begin(), dense.end(), layer) != dense.end();
    config.layers[layer].is_moe = !listed && (layer + 1) % step == 0;
  }
  if (config.num_moe_layers() < config.num_layers) {
    config.dense_intermediate_size = reader.Size({"intermediate_size"});
  }
}

std::string DecoderFamily::LayerPrefix(int64_t layer) {
  return absl::StrCat("model.layers.", layer, ".");
}

ModelTensorNames DecoderFamily::ModelNames() const {
  return {.embed_tokens = "model.embed_tokens.weight",
          .final_norm = "model.norm.weight",
          .lm_head = "lm_head.weight"};
}

AttentionTensorNames DecoderFamily::AttentionNames(int64_t layer) const {
  const std::string prefix = LayerPrefix(layer);
  const std::string attention = prefix + "self_attn.";
  return {.input_norm = prefix + "input_layernorm.weight",
          .q_proj = attention + "q_proj",
          .k_proj = attention + "k_proj",
          .v_proj = attention + "v_proj",
          .o_proj = attention + "o_proj",
          .q_norm = attention + "q_norm.weight",
          .k_norm = attention + "k_norm.weight"};
}

FeedForwardTensorNames DecoderFamily::FeedForwardNames(int64_t layer) const {
  const std::string prefix = LayerPrefix(layer);
  const std::string mlp = prefix + "mlp.";
  const std::string shared = mlp + "shared_expert.";
  return {.norm = prefix + "post_attention_layernorm.weight",
          .gate = mlp + "gate.weight",
          .dense_gate_proj = mlp + "gate_proj.weight",
          .dense_up_proj = mlp + "up_proj.weight",
          .dense_down_proj = mlp + "down_proj.weight",
          .shared_gate_proj = shared + "gate_proj.weight",
          .shared_up_proj = shared + "up_proj.weight",
          .shared_down_proj = shared + "down_proj.weight",
          .shared_expert_gate = mlp + "shared_expert_gate.weight"};
}

ExpertTensorNames DecoderFamily::ExpertNames(int64_t layer,
                                             int64_t expert) const {
  const std::string prefix =
      absl::StrCat(LayerPrefix(layer), "mlp.experts.", expert, ".");
  return {.gate_proj = prefix + "gate_proj.weight",
          .up_proj = prefix + "up_proj.weight",
          .down_proj = prefix + "down_proj.weight"};
}

}  // namespace expertmesh
