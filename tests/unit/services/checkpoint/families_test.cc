// Fields of config.json in their several spellings, per family.

#include "services/checkpoint/families/families.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/config_reader.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::TinyConfig;

// The tiny configuration of a family with `changes` merged in.
ModelConfig Parse(const std::string& model_type, const json& changes) {
  json config = TinyConfig(model_type);
  config.merge_patch(changes);
  ConfigReader reader("config.json", config);
  const auto parsed = FindFamily(model_type)->ParseConfig(reader);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : ModelConfig();
}

std::vector<int64_t> Windows(const ModelConfig& config) {
  std::vector<int64_t> windows;
  for (const LayerConfig& layer : config.layers) {
    windows.push_back(layer.sliding_window.value_or(0));
  }
  return windows;
}

TEST(FamiliesTest, AreFoundByModelType) {
  for (const char* name : {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"}) {
    ASSERT_NE(FindFamily(name), nullptr);
    EXPECT_EQ(FindFamily(name)->model_type(), name);
  }
  EXPECT_EQ(FindFamily("Mixtral"), nullptr);
  EXPECT_EQ(FindFamily(""), nullptr);
}

TEST(FamiliesTest, DefaultsOfAbsentFields) {
  const ModelConfig mixtral = Parse("mixtral", json::object());
  EXPECT_EQ(mixtral.norm_eps, 1e-5);
  EXPECT_EQ(mixtral.rope.theta, 1e6);
  EXPECT_EQ(mixtral.head_dim, 4);
  EXPECT_TRUE(mixtral.norm_topk_prob);
  const ModelConfig qwen2 = Parse("qwen2_moe", json::object());
  EXPECT_EQ(qwen2.norm_eps, 1e-6);
  EXPECT_EQ(qwen2.rope.theta, 1e4);
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.o_bias);
  EXPECT_FALSE(qwen2.norm_topk_prob);
  const ModelConfig olmoe =
      Parse("olmoe", {{"num_key_value_heads", nullptr}, {"clip_qkv", 0.5}});
  EXPECT_EQ(olmoe.num_kv_heads, 4);
  EXPECT_EQ(olmoe.clip_qkv, 0.5f);
}

TEST(FamiliesTest, AbsentKeyValueHeadsAreTheFamilysOwn) {
  const auto kv_heads = [](const std::string& model_type) {
    json config = TinyConfig(model_type);
    config["num_attention_heads"] = 32;
    config["head_dim"] = 4;
    config.erase("num_key_value_heads");
    ConfigReader reader("config.json", config);
    const auto parsed = FindFamily(model_type)->ParseConfig(reader);
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    return parsed.ok() ? parsed->num_kv_heads : 0;
  };
  EXPECT_EQ(kv_heads("mixtral"), 8);
  EXPECT_EQ(kv_heads("qwen2_moe"), 16);
  EXPECT_EQ(kv_heads("qwen3_moe"), 4);
  EXPECT_EQ(kv_heads("olmoe"), 32);
}

TEST(FamiliesTest, KeyValueHeadsOfNullAreAllHeads) {
  json config = TinyConfig("mixtral");
  config["num_key_value_heads"] = nullptr;  // merge_patch would erase it
  ConfigReader reader("config.json", config);
  const auto parsed = FindFamily("mixtral")->ParseConfig(reader);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->num_kv_heads, parsed->num_heads);
}

TEST(FamiliesTest, DTypeInBothSpellings) {
  EXPECT_EQ(Parse("olmoe", {{"torch_dtype", "bfloat16"}}).dtype, DType::kBF16);
  EXPECT_EQ(
      Parse("olmoe", {{"torch_dtype", nullptr}, {"dtype", "float16"}}).dtype,
      DType::kF16);
}

TEST(FamiliesTest, NumberOfExpertsInBothSpellings) {
  EXPECT_EQ(
      Parse("qwen3_moe", {{"num_experts", nullptr}, {"num_local_experts", 8}})
          .num_experts,
      8);
  EXPECT_EQ(Parse("qwen3_moe", {{"num_local_experts", 8}}).num_experts, 8);
}

TEST(FamiliesTest, AttentionBiasCoversAllFourProjections) {
  const ModelConfig config = Parse("qwen3_moe", {{"attention_bias", true}});
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_TRUE(config.o_bias);
}

TEST(FamiliesTest, SparseLayers) {
  const ModelConfig config = Parse("qwen3_moe", {{"num_hidden_layers", 6},
                                                 {"decoder_sparse_step", 2},
                                                 {"mlp_only_layers", {3}}});
  std::vector<bool> moe;
  for (const LayerConfig& layer : config.layers) moe.push_back(layer.is_moe);
  EXPECT_THAT(moe, ElementsAre(false, true, false, false, false, true));
  EXPECT_EQ(config.num_moe_layers(), 2);
  EXPECT_EQ(config.dense_intermediate_size, 24);
}

TEST(FamiliesTest, SlidingWindows) {
  EXPECT_THAT(Windows(Parse("mixtral", {{"sliding_window", 8}})),
              ElementsAre(8, 8));
  // Given, but switched off.
  EXPECT_THAT(Windows(Parse("qwen3_moe", {{"sliding_window", 8}})),
              ElementsAre(0, 0));
  EXPECT_THAT(Windows(Parse("qwen3_moe", {{"sliding_window", 8},
                                          {"use_sliding_window", true}})),
              ElementsAre(8, 8));
  const json on = {{"num_hidden_layers", 5},
                   {"sliding_window", 8},
                   {"max_window_layers", 4},
                   {"use_sliding_window", true}};
  EXPECT_THAT(Windows(Parse("qwen2_moe", on)), ElementsAre(8, 0, 8, 0, 0));
  json listed = on;
  listed["layer_types"] = {"full_attention", "sliding_attention",
                           "full_attention", "full_attention",
                           "sliding_attention"};
  EXPECT_THAT(Windows(Parse("qwen2_moe", listed)), ElementsAre(0, 8, 0, 0, 8));
}

TEST(FamiliesTest, RopeOldSpelling) {
  const RopeConfig rope =
      Parse("qwen3_moe", {{"rope_theta", 5000},
                          {"rope_scaling",
                           {{"type", "yarn"},
                            {"factor", 4.0},
                            {"original_max_position_embeddings", 16},
                            {"beta_fast", 16}}}})
          .rope;
  EXPECT_EQ(rope.type, RopeType::kYarn);
  EXPECT_EQ(rope.theta, 5000);
  EXPECT_EQ(rope.factor, 4.0);
  EXPECT_EQ(rope.original_max_position, 16);
  EXPECT_EQ(rope.beta_fast, 16);
  EXPECT_EQ(rope.beta_slow, 1);
  EXPECT_EQ(rope.attention_factor, std::nullopt);
  EXPECT_TRUE(rope.truncate);
}

TEST(FamiliesTest, RopeNewSpelling) {
  const RopeConfig rope =
      Parse("qwen3_moe", {{"rope_theta", 1},
                          {"rope_parameters",
                           {{"rope_type", "llama3"},
                            {"rope_theta", 7000},
                            {"factor", 8},
                            {"low_freq_factor", 1},
                            {"high_freq_factor", 4},
                            {"original_max_position_embeddings", 32}}}})
          .rope;
  EXPECT_EQ(rope.type, RopeType::kLlama3);
  EXPECT_EQ(rope.theta, 7000);
  EXPECT_EQ(rope.factor, 8);
  EXPECT_EQ(rope.high_freq_factor, 4);
  EXPECT_EQ(rope.original_max_position, 32);
}

TEST(FamiliesTest, RopeOtherTypes) {
  const auto rope = [](const json& scaling) {
    return Parse("mixtral", {{"rope_scaling", scaling}}).rope;
  };
  EXPECT_EQ(rope({{"type", "linear"}, {"factor", 2}}).type, RopeType::kLinear);
  const RopeConfig dynamic = rope({{"rope_type", "dynamic"}, {"factor", 2.5}});
  EXPECT_EQ(dynamic.type, RopeType::kDynamic);
  EXPECT_EQ(dynamic.factor, 2.5);
  EXPECT_EQ(dynamic.original_max_position, 64);
  const RopeConfig yarn = rope({{"rope_type", "yarn"},
                                {"original_max_position_embeddings", 16},
                                {"attention_factor", 1.5},
                                {"mscale", 0.5},
                                {"mscale_all_dim", 1},
                                {"truncate", false}});
  EXPECT_EQ(yarn.factor, 4.0);  // 64 positions from 16
  EXPECT_EQ(yarn.attention_factor, 1.5);
  EXPECT_EQ(yarn.mscale, 0.5);
  EXPECT_EQ(yarn.mscale_all_dim, 1.0);
  EXPECT_FALSE(yarn.truncate);
}

TEST(FamiliesTest, PartialRotary) {
  EXPECT_EQ(
      Parse("mixtral", {{"head_dim", 16}, {"partial_rotary_factor", 0.25}})
          .rope.rotary_dim,
      4);
}

TEST(FamiliesTest, F16CheckpointIsReadAsF16) {
  const testing::TempFolder folder;
  json config = TinyConfig("olmoe");
  config["torch_dtype"] = "float16";
  testing::MakeCheckpoint(config, DType::kF16).Write(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->config().dtype, DType::kF16);
  const auto tensor =
      (*checkpoint)->Tensor("model.embed_tokens.weight", {32, 16});
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  EXPECT_EQ(tensor->dtype, DType::kF16);
}

TEST(FamiliesTest, EosTokensOfTheModelConfigStandIn) {
  const auto eos = [](const json& model_eos, const json& generation_config) {
    const testing::TempFolder folder;
    testing::CheckpointParts parts =
        testing::MakeCheckpoint(TinyConfig("olmoe"));
    parts.config["eos_token_id"] = model_eos;
    parts.generation_config = generation_config;
    parts.Write(folder.path());
    const auto checkpoint = Checkpoint::Open(folder.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return (*checkpoint)->generation_defaults().eos_token_ids;
  };
  EXPECT_THAT(eos(5, nullptr), ElementsAre(5));
  EXPECT_THAT(eos({5, 6}, json::object()), ElementsAre(5, 6));
  EXPECT_THAT(eos(5, {{"eos_token_id", nullptr}}), ElementsAre(5));
  EXPECT_THAT(eos(5, {{"eos_token_id", 7}}), ElementsAre(7));
  EXPECT_THAT(eos(5, {{"eos_token_id", {7, 8}}}), ElementsAre(7, 8));
  EXPECT_THAT(eos(nullptr, nullptr), ElementsAre());
}

TEST(FamiliesTest, StopStringsOfTheGenerationConfig) {
  const auto stops = [](const json& value) {
    const testing::TempFolder folder;
    testing::CheckpointParts parts =
        testing::MakeCheckpoint(TinyConfig("olmoe"));
    parts.generation_config = {{"stop_strings", value}};
    parts.Write(folder.path());
    const auto checkpoint = Checkpoint::Open(folder.path());
    return checkpoint.ok() ? (*checkpoint)->generation_defaults().stop_strings
                           : std::vector<std::string>{"refused"};
  };
  EXPECT_THAT(stops({"a", "bc"}), ElementsAre("a", "bc"));
  EXPECT_THAT(stops("one"), ElementsAre("one"));
  EXPECT_THAT(stops(nullptr), ElementsAre());
  EXPECT_THAT(stops({"a", ""}), ElementsAre("refused"));
  EXPECT_THAT(stops(3), ElementsAre("refused"));
}

}  // namespace
}  // namespace expertmesh
