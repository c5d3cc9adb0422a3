// Every checkpoint of the repository opens, and its configuration reads as the
// reference reads it.

#include <chrono>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/checkpoint/checkpoint.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

using expertmesh::testing::MakeCheckpoint;
using expertmesh::testing::TempFolder;
using expertmesh::testing::TinyConfig;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string GoldenDirectory(const std::string& name) {
  return std::string(EXPERTMESH_SOURCE_DIR) + "/tests/golden/" + name;
}

std::unique_ptr<Checkpoint> OpenOrFail(const std::string& directory) {
  auto checkpoint = Checkpoint::Open(directory);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

float FirstElement(const TensorView& tensor) {
  if (tensor.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, tensor.data, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, tensor.data, sizeof(bits));
  return tensor.dtype == DType::kBF16 ? ToF32(BF16{bits}) : F16ToF32(bits);
}

TEST(GoldenCheckpointsTest, Mixtral) {
  const auto checkpoint = OpenOrFail(GoldenDirectory("mixtral"));
  ASSERT_NE(checkpoint, nullptr);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(checkpoint->name(), "mixtral");
  EXPECT_EQ(checkpoint->family().model_type(), "mixtral");
  EXPECT_EQ(config.model_type, "mixtral");
  EXPECT_EQ(config.dtype, DType::kF32);
  EXPECT_EQ(config.vocab_size, 320);
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.num_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 24);
  EXPECT_EQ(config.max_position_embeddings, 256);
  EXPECT_EQ(config.norm_eps, 1e-5);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.rope.rotary_dim, 24);
  EXPECT_EQ(config.qk_norm, QkNorm::kNone);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.num_experts, 8);
  EXPECT_EQ(config.top_k, 2);
  EXPECT_TRUE(config.norm_topk_prob);
  EXPECT_EQ(config.expert_intermediate_size, 40);
  EXPECT_EQ(config.shared_intermediate_size, 0);
  EXPECT_EQ(config.num_moe_layers(), 2);
  EXPECT_EQ(config.layers[0].sliding_window, std::nullopt);
  EXPECT_THAT(checkpoint->generation_defaults().eos_token_ids, ElementsAre(2));
}

TEST(GoldenCheckpointsTest, ShardedMixtralHoldsTheSameTensors) {
  const auto whole = OpenOrFail(GoldenDirectory("mixtral"));
  const auto sharded = OpenOrFail(GoldenDirectory("mixtral_sharded"));
  ASSERT_NE(whole, nullptr);
  ASSERT_NE(sharded, nullptr);
  EXPECT_NE(whole->fingerprint(), sharded->fingerprint());
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (int64_t expert = 0; expert < 8; ++expert) {
      const ExpertTensorNames names =
          whole->family().ExpertNames(layer, expert);
      const auto a = whole->Tensor(names.down_proj, {64, 40});
      const auto b = sharded->Tensor(names.down_proj, {64, 40});
      ASSERT_TRUE(a.ok()) << a.status();
      ASSERT_TRUE(b.ok()) << b.status();
      EXPECT_EQ(std::memcmp(a->data, b->data, a->size_bytes()), 0);
    }
  }
}

TEST(GoldenCheckpointsTest, MixtralWindowInTheNewSpelling) {
  const auto checkpoint = OpenOrFail(GoldenDirectory("mixtral_window"));
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->config().rope.theta, 1e4);
  for (const LayerConfig& layer : checkpoint->config().layers) {
    EXPECT_EQ(layer.sliding_window, 8);
  }
}

TEST(GoldenCheckpointsTest, Qwen2Moe) {
  const auto checkpoint = OpenOrFail(GoldenDirectory("qwen2_moe"));
  ASSERT_NE(checkpoint, nullptr);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_FALSE(config.o_bias);
  EXPECT_FALSE(config.norm_topk_prob);
  EXPECT_EQ(config.expert_intermediate_size, 40);
  EXPECT_EQ(config.shared_intermediate_size, 56);
  EXPECT_TRUE(config.shared_expert_gate);
  EXPECT_EQ(config.dense_intermediate_size, 80);
  ASSERT_EQ(config.layers.size(), 3u);
  EXPECT_TRUE(config.layers[0].is_moe);
  EXPECT_FALSE(config.layers[1].is_moe);
  EXPECT_TRUE(config.layers[2].is_moe);
  // A window is given, but use_sliding_window is off.
  EXPECT_EQ(config.layers[0].sliding_window, std::nullopt);
}

TEST(GoldenCheckpointsTest, Qwen3Moe) {
  const auto checkpoint = OpenOrFail(GoldenDirectory("qwen3_moe"));
  ASSERT_NE(checkpoint, nullptr);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.qk_norm, QkNorm::kPerHead);
  EXPECT_EQ(config.head_dim, 24);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_TRUE(config.norm_topk_prob);
  EXPECT_EQ(config.norm_eps, 1e-6);
  EXPECT_EQ(config.num_moe_layers(), 3);
  EXPECT_EQ(config.dense_intermediate_size, 0);
}

TEST(GoldenCheckpointsTest, Qwen3MoeInBf16) {
  const auto bf16 = OpenOrFail(GoldenDirectory("qwen3_moe_bf16"));
  ASSERT_NE(bf16, nullptr);
  EXPECT_EQ(bf16->config().dtype, DType::kBF16);
  const auto tensor = bf16->Tensor("model.embed_tokens.weight", {320, 64});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_EQ(tensor->dtype, DType::kBF16);
  EXPECT_EQ(tensor->size_bytes(), 320u * 64 * 2);
}

TEST(GoldenCheckpointsTest, Olmoe) {
  const auto checkpoint = OpenOrFail(GoldenDirectory("olmoe"));
  ASSERT_NE(checkpoint, nullptr);
  const ModelConfig& config = checkpoint->config();
  EXPECT_EQ(config.qk_norm, QkNorm::kWholeVector);
  EXPECT_EQ(config.clip_qkv, std::nullopt);
  EXPECT_FALSE(config.norm_topk_prob);
  EXPECT_EQ(config.expert_intermediate_size, 36);
}

TEST(GoldenCheckpointsTest, DemoModel) {
  const auto checkpoint =
      OpenOrFail(std::string(EXPERTMESH_SOURCE_DIR) + "/deploy/demo_model/");
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->name(), "demo_model");
  EXPECT_TRUE(checkpoint->config().tie_word_embeddings);
  EXPECT_FALSE(checkpoint->HasTensor("lm_head.weight"));
  const GenerationDefaults& defaults = checkpoint->generation_defaults();
  EXPECT_THAT(defaults.eos_token_ids, ElementsAre(0, 2));
  EXPECT_EQ(defaults.do_sample, true);
  EXPECT_EQ(defaults.temperature, 0.8f);
  EXPECT_EQ(defaults.top_k, 40);
  EXPECT_EQ(defaults.top_p, 0.95f);
  EXPECT_EQ(defaults.min_p, std::nullopt);
  EXPECT_EQ(defaults.max_new_tokens, std::nullopt);
}

TEST(GoldenCheckpointsTest, TensorsAreReadAndRefusedByShape) {
  const auto checkpoint = OpenOrFail(GoldenDirectory("mixtral"));
  ASSERT_NE(checkpoint, nullptr);
  const auto norm = checkpoint->Tensor("model.norm.weight", {64});
  ASSERT_TRUE(norm.ok()) << norm.status();
  EXPECT_NE(FirstElement(*norm), 0.0f);

  const auto wrong = checkpoint->Tensor("model.norm.weight", {8, 8});
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(wrong.status().message()),
              AllOf(HasSubstr("mixtral/model.safetensors"),
                    HasSubstr("'model.norm.weight'"), HasSubstr("[64]"),
                    HasSubstr("[8, 8]")));
}

TEST(GoldenCheckpointsTest, FingerprintDependsOnContentsOnly) {
  const auto a = OpenOrFail(GoldenDirectory("qwen3_moe"));
  const auto b = OpenOrFail(GoldenDirectory("../golden/qwen3_moe"));
  const auto c = OpenOrFail(GoldenDirectory("qwen2_moe"));
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->fingerprint(), b->fingerprint());
  EXPECT_NE(a->fingerprint(), c->fingerprint());
  EXPECT_EQ(a->fingerprint().size(), 16u);
}

// Headers and all tensors of the router are alike.
TEST(FingerprintTest, DiffersWhereOnlyExpertsWereTuned) {
  auto parts = MakeCheckpoint(TinyConfig("qwen3_moe"));
  std::set<std::string> fingerprints;
  const auto open = [&] {
    const TempFolder folder;
    parts.Write(folder.path());
    const auto checkpoint = OpenOrFail(folder.path());
    ASSERT_NE(checkpoint, nullptr);
    fingerprints.insert(checkpoint->fingerprint());
  };
  open();
  for (const char* name : {"model.layers.0.mlp.experts.0.gate_proj.weight",
                           "model.layers.1.mlp.experts.7.down_proj.weight"}) {
    parts.Tensor(name).bytes[5] ^= 1;
    open();
  }
  EXPECT_EQ(fingerprints.size(), 3u);
}

// A byte that the fingerprint does not see must not bring back old packed
// weights.
TEST(FingerprintTest, TheLocalIdTellsWhenFilesWereWritten) {
  auto parts = MakeCheckpoint(TinyConfig("qwen3_moe"));
  const TempFolder folder;
  parts.Write(folder.path());
  const auto first = OpenOrFail(folder.path());
  const auto again = OpenOrFail(folder.path());
  ASSERT_TRUE(first != nullptr && again != nullptr);
  EXPECT_EQ(first->local_id(), again->local_id());
  EXPECT_THAT(first->local_id(), HasSubstr(first->fingerprint()));
  const std::filesystem::path file = folder.File("model.safetensors");
  std::filesystem::last_write_time(
      file, std::filesystem::last_write_time(file) + std::chrono::seconds(1));
  const auto later = OpenOrFail(folder.path());
  ASSERT_NE(later, nullptr);
  EXPECT_EQ(later->fingerprint(), first->fingerprint());
  EXPECT_NE(later->local_id(), first->local_id());
}

}  // namespace
}  // namespace expertmesh
