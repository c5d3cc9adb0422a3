// A broken checkpoint folder is refused at Open with one line that names the
// file and the tensor or field.

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/checkpoint/checkpoint.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using testing::CheckpointParts;
using ::testing::HasSubstr;
using testing::MakeCheckpoint;
using testing::ReadFile;
using testing::StoredTensor;
using testing::TempFolder;
using testing::TinyConfig;
using testing::WriteFile;

MATCHER_P3(Refuses, code, file, part, "") {
  const absl::Status& status = arg;
  *result_listener << status;
  const std::string message(status.message());
  return status.code() == code && message.find(file) != std::string::npos &&
         message.find(part) != std::string::npos &&
         message.find('\n') == std::string::npos;
}

constexpr auto kBroken = absl::StatusCode::kFailedPrecondition;
constexpr auto kMissing = absl::StatusCode::kNotFound;

absl::Status OpenFolder(const TempFolder& folder) {
  return Checkpoint::Open(folder.path()).status();
}

// Writes a tiny checkpoint after `change` and opens it.
absl::Status OpenChanged(absl::string_view model_type,
                         const std::function<void(CheckpointParts&)>& change) {
  const TempFolder folder;
  CheckpointParts parts = MakeCheckpoint(TinyConfig(model_type));
  change(parts);
  parts.Write(folder.path());
  return OpenFolder(folder);
}

TEST(MalformedCheckpointTest, TheUnchangedOnesOpen) {
  for (const char* model_type :
       {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"}) {
    EXPECT_TRUE(OpenChanged(model_type, [](CheckpointParts&) {}).ok());
  }
}

TEST(MalformedCheckpointTest, MissingFolderAndFiles) {
  const TempFolder folder;
  EXPECT_THAT(Checkpoint::Open(folder.File("nowhere")).status(),
              Refuses(kMissing, "nowhere", "no such checkpoint folder"));
  EXPECT_THAT(OpenFolder(folder), Refuses(kMissing, "/config.json", ""));
  WriteFile(folder.File("config.json"), TinyConfig("mixtral").dump());
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kMissing, folder.path(), "neither model.safetensors"));
}

TEST(MalformedCheckpointTest, BrokenJson) {
  const TempFolder folder;
  MakeCheckpoint(TinyConfig("mixtral")).Write(folder.path());
  WriteFile(folder.File("config.json"), "{\"model_type\": ");
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kBroken, "/config.json", "malformed JSON at byte"));
  WriteFile(folder.File("config.json"), "[1]");
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kBroken, "/config.json", "one JSON object"));
  WriteFile(folder.File("config.json"),
            R"({"model_type": "mixtral", "rms_norm_eps": NaN})");
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kBroken, "/config.json", "malformed JSON at byte"));
}

TEST(MalformedCheckpointTest, TruncatedWeights) {
  const TempFolder folder;
  MakeCheckpoint(TinyConfig("mixtral")).Write(folder.path());
  const std::string path = folder.File("model.safetensors");
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kBroken, "/model.safetensors: tensor 'model.layers.1.",
                      "truncated"));
}

TEST(MalformedCheckpointTest, MissingTensor) {
  const std::string expert = "model.layers.1.mlp.experts.7.up_proj.weight";
  EXPECT_THAT(
      OpenChanged("qwen3_moe",
                  [&](CheckpointParts& parts) { parts.Remove(expert); }),
      Refuses(kBroken, "/model.safetensors", expert + "' is missing"));
  EXPECT_THAT(
      OpenChanged(
          "qwen3_moe",
          [](CheckpointParts& parts) { parts.Remove("lm_head.weight"); }),
      Refuses(kBroken, "/model.safetensors", "'lm_head.weight' is missing"));
}

TEST(MalformedCheckpointTest, WrongShapeOrType) {
  EXPECT_THAT(OpenChanged("mixtral",
                          [](CheckpointParts& parts) {
                            parts.Tensor("model.norm.weight").shape = {4, 4};
                          }),
              Refuses(kBroken, "/model.safetensors",
                      "tensor 'model.norm.weight' has shape [4, 4], but the "
                      "configuration asks for [16]"));
  EXPECT_THAT(OpenChanged("mixtral",
                          [](CheckpointParts& parts) {
                            parts.Tensor("model.norm.weight").dtype = "I32";
                          }),
              Refuses(kBroken, "/model.safetensors",
                      "tensor 'model.norm.weight' has dtype I32"));
}

// Released files may repeat the table as a head; one that differs would be left
// out without a word.
TEST(MalformedCheckpointTest, TiedHeadsMustRepeatTheTable) {
  const auto open_with_head =
      [](const std::function<void(StoredTensor&, const StoredTensor&)>&
             change) {
        return OpenChanged("mixtral", [&](CheckpointParts& parts) {
          parts.config["tie_word_embeddings"] = true;
          change(parts.Tensor("lm_head.weight"),
                 parts.Tensor("model.embed_tokens.weight"));
        });
      };
  EXPECT_TRUE(open_with_head([](StoredTensor& head, const StoredTensor& table) {
                head.bytes = table.bytes;
              }).ok());
  EXPECT_THAT(open_with_head([](StoredTensor& head, const StoredTensor& table) {
                head.bytes = table.bytes;
                head.bytes.back() ^= 1;
              }),
              Refuses(kBroken, "/model.safetensors",
                      "tensor 'lm_head.weight' differs from "
                      "'model.embed_tokens.weight'"));
  EXPECT_THAT(open_with_head([](StoredTensor& head, const StoredTensor& table) {
                head.dtype = "BF16";
                head.bytes = table.bytes.substr(table.bytes.size() / 2);
              }),
              Refuses(kBroken, "/model.safetensors",
                      "tensor 'lm_head.weight' differs from "
                      "'model.embed_tokens.weight'"));
  EXPECT_THAT(open_with_head([](StoredTensor& head, const StoredTensor& table) {
                head.shape = {16, 32};
                head.bytes = table.bytes;
              }),
              Refuses(kBroken, "/model.safetensors",
                      "tensor 'lm_head.weight' has shape [16, 32]"));
}

TEST(MalformedCheckpointTest, MatricesPackedTogetherHaveOneType) {
  for (const std::string matrix :
       {"model.layers.1.self_attn.k_proj", "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.shared_expert.up_proj"}) {
    CheckpointParts parts = [] {
      json config = TinyConfig("qwen2_moe");
      config["mlp_only_layers"] = {0};
      return MakeCheckpoint(config);
    }();
    StoredTensor& tensor = parts.Tensor(matrix + ".weight");
    tensor.dtype = "F16";
    tensor.bytes.resize(tensor.bytes.size() / 2);
    const TempFolder folder;
    parts.Write(folder.path());
    EXPECT_THAT(OpenFolder(folder),
                Refuses(kBroken, "/model.safetensors",
                        "tensor '" + matrix + ".weight' is F16, but '"));
  }
}

TEST(MalformedCheckpointTest, ExtraTensorsAndLayersAreIgnored) {
  EXPECT_TRUE(OpenChanged("qwen3_moe", [](CheckpointParts& parts) {
                for (const char* name :
                     {"mtp.norm.weight", "model.layers.2.mlp.gate.weight"}) {
                  parts.tensors.push_back(
                      StoredTensor{name, "I64", {1}, std::string(8, '\0')});
                }
              }).ok());
}

struct BadConfig {
  std::string model_type;
  json changes;  // merged into the tiny configuration; null removes a field
  std::string file;
  std::string complaint;
};

class BadConfigTest : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigTest, IsRefused) {
  EXPECT_THAT(OpenChanged(GetParam().model_type,
                          [](CheckpointParts& parts) {
                            parts.config.merge_patch(GetParam().changes);
                          }),
              Refuses(kBroken, GetParam().file, GetParam().complaint));
}

BadConfig Bad(const std::string& model_type, const json& changes,
              const std::string& complaint) {
  return {model_type, changes, "/config.json", complaint};
}

// The configuration is sound in itself, but the weights are of another model.
BadConfig Contradicts(const std::string& model_type, const json& changes,
                      const std::string& complaint) {
  return {model_type, changes, "/model.safetensors", complaint};
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadConfigTest,
    ::testing::Values(
        Bad("mixtral", {{"model_type", "llama"}},
            "model_type 'llama' is not supported (known: mixtral, olmoe, "
            "qwen2_moe, qwen3_moe)"),
        Bad("mixtral", {{"model_type", nullptr}}, "model_type ''"),
        Bad("mixtral", {{"model_type", 3}}, "model_type must be a string"),
        Bad("mixtral", {{"quantization_config", {{"quant_method", "awq"}}}},
            "quantization_config (method 'awq') is not supported"),
        Bad("mixtral", {{"hidden_size", nullptr}}, "hidden_size is missing"),
        Bad("mixtral", {{"hidden_size", -16}}, "hidden_size must be"),
        Bad("mixtral", {{"hidden_size", 0}}, "hidden_size must be"),
        Bad("mixtral", {{"hidden_size", 16.5}}, "hidden_size must be"),
        Bad("mixtral", {{"hidden_size", "16"}}, "hidden_size must be"),
        Bad("mixtral", {{"hidden_size", 1e30}}, "hidden_size must be"),
        Bad("mixtral", {{"vocab_size", 18446744073709551615u}},
            "vocab_size must be"),
        Bad("mixtral", {{"num_hidden_layers", 1000000}},
            "num_hidden_layers must be"),
        Bad("mixtral", {{"num_experts_per_tok", 9}},
            "num_experts_per_tok (9) exceeds the number of experts (8)"),
        Bad("mixtral", {{"num_key_value_heads", 3}},
            "num_attention_heads (4) is not a multiple of "
            "num_key_value_heads (3)"),
        Bad("mixtral", {{"num_attention_heads", 3}},
            "hidden_size (16) is not a multiple of num_attention_heads (3)"),
        Bad("mixtral", {{"head_dim", 3}}, "head_dim (3)"),
        Bad("mixtral", {{"hidden_act", "gelu"}},
            "hidden_act 'gelu' is not supported"),
        Bad("mixtral", {{"torch_dtype", "int8"}},
            "torch_dtype 'int8' is not supported"),
        Bad("mixtral", {{"rms_norm_eps", 0}}, "rms_norm_eps must be"),
        Bad("mixtral", {{"rms_norm_eps", "1e-5"}}, "rms_norm_eps must be"),
        Bad("mixtral", {{"sliding_window", 0}}, "sliding_window must be"),
        Bad("mixtral", {{"tie_word_embeddings", 1}},
            "tie_word_embeddings must be true or false"),
        Bad("mixtral", {{"num_experts", 4}}, "contradicts num_experts"),
        Bad("mixtral", {{"eos_token_id", "</s>"}}, "eos_token_id must be"),
        Bad("mixtral", {{"eos_token_id", {1, -1}}}, "eos_token_id must list"),
        Bad("mixtral",
            {{"vocab_size", 16777216},
             {"hidden_size", 16777216},
             {"intermediate_size", 16777216}},
            "more than 1e+15 parameters"),
        Bad("mixtral", {{"rope_theta", 0}}, "rope_theta must be"),
        Bad("mixtral", {{"rope_scaling", "linear"}},
            "rope_scaling must be an object"),
        Bad("mixtral", {{"rope_scaling", {{"type", "longrope"}}}},
            "rope_scaling.type 'longrope' is not supported"),
        Bad("mixtral", {{"rope_parameters", {{"rope_type", "su"}}}},
            "rope_parameters.rope_type 'su' is not supported"),
        Bad("mixtral", {{"rope_scaling", {{"rope_type", "linear"}}}},
            "rope_scaling.factor is missing"),
        Bad("mixtral",
            {{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", -2}}}},
            "rope_scaling.factor must be"),
        Bad("mixtral",
            {{"rope_scaling",
              {{"rope_type", "llama3"},
               {"factor", 8},
               {"low_freq_factor", 4},
               {"high_freq_factor", 4}}}},
            "rope_scaling.high_freq_factor (4) must exceed"),
        Bad("mixtral",
            {{"rope_parameters",
              {{"full_attention", {{"rope_type", "default"}}}}}},
            "rope_parameters.full_attention"),
        Bad("qwen2_moe", {{"mlp_only_layers", {0, 1}}},
            "none of the 2 layers is a mixture of experts"),
        Bad("qwen2_moe", {{"mlp_only_layers", 1}}, "mlp_only_layers must be"),
        Bad("qwen2_moe", {{"mlp_only_layers", {-1}}},
            "mlp_only_layers must list"),
        Bad("qwen2_moe", {{"shared_expert_intermediate_size", nullptr}},
            "shared_expert_intermediate_size is missing"),
        Bad("qwen2_moe",
            {{"use_sliding_window", true},
             {"sliding_window", 8},
             {"layer_types", {"full_attention"}}},
            "layer_types lists 1 layers of 2"),
        Bad("qwen2_moe",
            {{"use_sliding_window", true},
             {"sliding_window", 8},
             {"layer_types", {"full_attention", "linear_attention"}}},
            "layer_types 'linear_attention' is not supported"),
        Bad("qwen3_moe", {{"decoder_sparse_step", 0}},
            "decoder_sparse_step must be"),
        Bad("olmoe", {{"clip_qkv", -1}}, "clip_qkv must be")));

INSTANTIATE_TEST_SUITE_P(
    AgainstWeights, BadConfigTest,
    ::testing::Values(
        Contradicts("mixtral", {{"hidden_size", 32}, {"head_dim", 4}},
                    "'model.embed_tokens.weight' has shape [32, 16]"),
        Contradicts("mixtral", {{"num_local_experts", 9}},
                    "'model.layers.0.block_sparse_moe.gate.weight' has shape "
                    "[8, 16]"),
        Contradicts("mixtral", {{"num_hidden_layers", 3}},
                    "'model.layers.2.input_layernorm.weight' is missing"),
        Contradicts("mixtral", {{"intermediate_size", 25}},
                    "'model.layers.0.block_sparse_moe.experts.0.w1.weight'"),
        Contradicts("qwen2_moe", {{"qkv_bias", false}},
                    "'model.layers.0.self_attn.q_proj.bias' is there"),
        Contradicts("qwen3_moe", {{"attention_bias", true}},
                    "'model.layers.0.self_attn.q_proj.bias' is missing"),
        Contradicts("qwen2_moe", {{"mlp_only_layers", {1}}},
                    "'model.layers.1.mlp.gate_proj.weight' is missing"),
        Contradicts("olmoe",
                    {{"model_type", "qwen3_moe"},
                     {"moe_intermediate_size", 24}},
                    "'model.layers.0.self_attn.q_norm.weight' has shape "
                    "[16], but the configuration asks for [4]")));

TEST(MalformedCheckpointTest, Shards) {
  const TempFolder folder;
  const CheckpointParts parts = MakeCheckpoint(TinyConfig("mixtral"));
  parts.WriteSharded(folder.path(), 3);
  ASSERT_TRUE(OpenFolder(folder).ok()) << OpenFolder(folder);

  const std::string index_path = folder.File("model.safetensors.index.json");
  const json index = json::parse(ReadFile(index_path));
  const auto with_entry = [&](const json& shard) {
    json changed = index;
    changed["weight_map"]["model.norm.weight"] = shard;
    WriteFile(index_path, changed.dump());
    return OpenFolder(folder);
  };
  for (const char* shard :
       {"../x.safetensors", "/etc/passwd", "..", "a/b", ""}) {
    EXPECT_THAT(
        with_entry(shard),
        Refuses(kBroken, "index.json", "'model.norm.weight' is mapped to '"));
  }
  EXPECT_THAT(with_entry(7), Refuses(kBroken, "index.json",
                                     "'model.norm.weight' is mapped to 7,"));
  EXPECT_THAT(with_entry("absent.safetensors"),
              Refuses(kMissing, "/absent.safetensors", ""));
  // Another shard than the one that holds it.
  const std::string holder = index["weight_map"]["model.norm.weight"];
  const std::string other = holder == "model-00001-of-00003.safetensors"
                                ? "model-00002-of-00003.safetensors"
                                : "model-00001-of-00003.safetensors";
  EXPECT_THAT(with_entry(other),
              Refuses(kBroken, "/" + other, "'model.norm.weight' is missing"));

  json lacking = index;
  lacking["weight_map"].erase("model.norm.weight");
  WriteFile(index_path, lacking.dump());
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kBroken, "index.json", "'model.norm.weight' is missing"));
  WriteFile(index_path, R"({"weight_map": []})");
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kBroken, "index.json", "no object weight_map"));

  WriteFile(index_path, index.dump());
  std::filesystem::remove(folder.File("model-00002-of-00003.safetensors"));
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kMissing, "/model-00002-of-00003.safetensors", ""));
}

TEST(MalformedCheckpointTest, GenerationConfig) {
  const auto open_with = [](const json& generation_config) {
    return OpenChanged("mixtral", [&](CheckpointParts& parts) {
      parts.generation_config = generation_config;
    });
  };
  EXPECT_TRUE(open_with({{"temperature", nullptr}}).ok());
  const std::pair<json, std::string> cases[] = {
      {{{"eos_token_id", "x"}}, "eos_token_id"},
      {{{"eos_token_id", -1}}, "eos_token_id"},
      {{{"temperature", -0.5}}, "temperature"},
      {{{"top_p", 1.5}}, "top_p"},
      {{{"top_k", 1.5}}, "top_k"},
      {{{"repetition_penalty", 0}}, "repetition_penalty"},
      {{{"max_new_tokens", 0}}, "max_new_tokens"},
      {{{"do_sample", "yes"}}, "do_sample"}};
  for (const auto& [generation_config, field] : cases) {
    EXPECT_THAT(open_with(generation_config),
                Refuses(kBroken, "/generation_config.json", field));
  }
}

TEST(MalformedCheckpointTest, ALinkThatLeadsNowhereIsNoAbsentFile) {
  const TempFolder folder;
  MakeCheckpoint(TinyConfig("mixtral")).Write(folder.path());
  std::filesystem::create_symlink("/no/such/file",
                                  folder.File("generation_config.json"));
  EXPECT_THAT(OpenFolder(folder),
              Refuses(kMissing, "/generation_config.json", ""));
}

}  // namespace
}  // namespace expertmesh
