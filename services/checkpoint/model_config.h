#pragma once

// config.json of a Hugging Face checkpoint → one description of the model that
// is the same for every family.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/core/dtype.h"

namespace expertmesh {

class ConfigReader;

enum class QkNorm {
  kNone,
  kPerHead,      // RMS norm over each head, before RoPE (Qwen3)
  kWholeVector,  // RMS norm over the whole projection, before the head split
                 // (OLMoE)
};

// How gate logits become experts and weights.
enum class GateRule {
  kSoftmaxTopK,  // softmax over all experts, top-k, optionally renormalised
};

enum class Activation { kSiluGlu };  // down(silu(gate x) · up x)

enum class RopeType { kDefault, kLinear, kDynamic, kYarn, kLlama3 };

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  int64_t rotary_dim = 0;  // first dimensions of a head that rotate
  double factor = 1.0;
  int64_t original_max_position = 0;
  // YaRN
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  std::optional<double> attention_factor;
  std::optional<double> mscale;
  std::optional<double> mscale_all_dim;
  bool truncate = true;
  // Llama 3
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
};

struct LayerConfig {
  bool is_moe = true;
  // A query at position q sees keys in (q - window, q]; absent: all up to q.
  std::optional<int64_t> sliding_window;
};

// All sizes are in elements. Valid as returned: positive sizes, heads divide,
// top_k ≤ num_experts, one LayerConfig per layer.
struct ModelConfig {
  std::string model_type;
  DType dtype = DType::kF32;  // the checkpoint's activation type

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  RopeConfig rope;
  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false;
  bool o_bias = false;
  std::optional<float> clip_qkv;  // clamp of q, k and v to [-c, c]

  // Feed-forward.
  GateRule gate_rule = GateRule::kSoftmaxTopK;
  Activation activation = Activation::kSiluGlu;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool norm_topk_prob = false;
  int64_t expert_intermediate_size = 0;
  int64_t dense_intermediate_size = 0;   // of layers that are not MoE
  int64_t shared_intermediate_size = 0;  // 0: no shared expert
  bool shared_expert_gate =
      false;  // sigmoid(gate · x) scales the shared expert

  std::vector<LayerConfig> layers;

  int64_t num_moe_layers() const;
  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
};

// Checks what no single field shows: that heads divide, that top_k experts
// exist, that some layer is MoE, that the model is of a size that exists.
// `file` names the source in errors. Errors: FAILED_PRECONDITION.
absl::Status ValidateModelConfig(absl::string_view file,
                                 const ModelConfig& config);

// Tensor names of a family. `layer` and `expert` are absolute indices.
// The config says which of them a model has. Names are whole, with ".weight",
// except the four projections that may have a bias.
struct AttentionTensorNames {
  std::string input_norm;
  std::string q_proj, k_proj, v_proj, o_proj;  // without ".weight" / ".bias"
  std::string q_norm, k_norm;
};
struct FeedForwardTensorNames {
  std::string norm;
  std::string gate;  // router gate weight [num_experts, hidden_size]
  std::string dense_gate_proj, dense_up_proj, dense_down_proj;
  std::string shared_gate_proj, shared_up_proj, shared_down_proj;
  std::string shared_expert_gate;  // [1, hidden_size]
};
struct ExpertTensorNames {
  std::string gate_proj;  // [intermediate, hidden]
  std::string up_proj;    // [intermediate, hidden]
  std::string down_proj;  // [hidden, intermediate]
};
struct ModelTensorNames {
  std::string embed_tokens, final_norm, lm_head;
};

// One model family: how its config reads and what its tensors are called. To
// add a family, write one and list it in families/families.cc.
class ModelFamily {
 public:
  virtual ~ModelFamily() = default;
  virtual absl::string_view model_type() const = 0;
  // The fields of config.json. `num_layers`, `layers` and all sizes are set
  // when it is OK; ValidateModelConfig is the caller's.
  // Errors: FAILED_PRECONDITION naming file and field.
  virtual absl::StatusOr<ModelConfig> ParseConfig(
      ConfigReader& reader) const = 0;
  virtual ModelTensorNames ModelNames() const = 0;
  virtual AttentionTensorNames AttentionNames(int64_t layer) const = 0;
  virtual FeedForwardTensorNames FeedForwardNames(int64_t layer) const = 0;
  virtual ExpertTensorNames ExpertNames(int64_t layer,
                                        int64_t expert) const = 0;
};

}  // namespace expertmesh
