#include "tests/support/safetensors_writer.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/checkpoint/config_reader.h"
#include "services/checkpoint/families/families.h"
#include "services/checkpoint/required_tensors.h"

namespace expertmesh::testing {
namespace {

using nlohmann::json;

// A test that cannot be set up must not go on.
void Require(bool condition, absl::string_view what) {
  if (!condition) throw std::runtime_error(std::string(what));
}

// Multiples of 1/64 in [-1, 1): exact in every float type.
float ElementValue(size_t tensor_seed, int64_t index) {
  const uint64_t mixed =
      (tensor_seed + static_cast<uint64_t>(index)) * 0x9e3779b97f4a7c15u;
  return (static_cast<float>(mixed >> 57) - 64.0f) / 64.0f;
}

// Of the values above, which are normal binary16 numbers or zero.
uint16_t F16Bits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  if (value == 0.0f) return static_cast<uint16_t>(sign);
  const uint32_t exponent = (bits >> 23 & 0xffu) - 112;
  return static_cast<uint16_t>(sign | exponent << 10 | (bits >> 13 & 0x3ffu));
}

template <typename T>
void Append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string ElementBytes(const std::string& name, int64_t count, DType dtype) {
  const size_t seed = std::hash<std::string>()(name);
  std::string bytes;
  bytes.reserve(static_cast<size_t>(count) * DTypeBytes(dtype));
  for (int64_t i = 0; i < count; ++i) {
    const float value = ElementValue(seed, i);
    switch (dtype) {
      case DType::kF32:
        Append(bytes, value);
        break;
      case DType::kBF16:
        Append(bytes, ToBF16(value).bits);
        break;
      case DType::kF16:
        Append(bytes, F16Bits(value));
        break;
      case DType::kInt8:
        break;  // no tensor is
    }
  }
  return bytes;
}

void WriteConfigs(const CheckpointParts& parts, const std::string& folder) {
  WriteFile(folder + "/config.json", parts.config.dump(2));
  if (!parts.generation_config.is_null()) {
    WriteFile(folder + "/generation_config.json",
              parts.generation_config.dump(2));
  }
}

}  // namespace

TempFolder::TempFolder() {
  std::string pattern =
      (std::filesystem::temp_directory_path() / "expertmesh-XXXXXX").string();
  Require(mkdtemp(pattern.data()) != nullptr, "mkdtemp failed");
  path_ = pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempFolder::File(absl::string_view name) const {
  return absl::StrCat(path_, "/", name);
}

void WriteFile(const std::string& path, absl::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  Require(file.good(), "cannot write " + path);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Require(file.good(), "cannot read " + path);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

std::string SafetensorsBytes(absl::string_view header, absl::string_view data) {
  std::string bytes;
  Append(bytes, static_cast<uint64_t>(header.size()));
  absl::StrAppend(&bytes, header, data);
  return bytes;
}

std::string SafetensorsBytes(const std::vector<StoredTensor>& tensors) {
  json header = json::object();
  std::string data;
  for (const StoredTensor& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.bytes;
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin, data.size()}}};
  }
  return SafetensorsBytes(header.dump(), data);
}

StoredTensor& CheckpointParts::Tensor(absl::string_view name) {
  const auto found = std::find_if(
      tensors.begin(), tensors.end(),
      [name](const StoredTensor& tensor) { return tensor.name == name; });
  Require(found != tensors.end(), absl::StrCat("no tensor ", name));
  return *found;
}

void CheckpointParts::Remove(absl::string_view name) {
  StoredTensor& tensor = Tensor(name);
  tensors.erase(tensors.begin() + (&tensor - tensors.data()));
}

void CheckpointParts::Write(const std::string& folder) const {
  WriteConfigs(*this, folder);
  WriteFile(folder + "/model.safetensors", SafetensorsBytes(tensors));
}

void CheckpointParts::WriteSharded(const std::string& folder,
                                   int num_shards) const {
  WriteConfigs(*this, folder);
  json weight_map = json::object();
  std::vector<std::vector<StoredTensor>> shards(num_shards);
  const auto shard_name = [num_shards](size_t shard) {
    return absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1,
                           num_shards);
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    weight_map[tensors[i].name] = shard_name(i % shards.size());
    shards[i % shards.size()].push_back(tensors[i]);
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    WriteFile(absl::StrCat(folder, "/", shard_name(i)),
              SafetensorsBytes(shards[i]));
  }
  WriteFile(folder + "/model.safetensors.index.json",
            json({{"weight_map", weight_map}}).dump(2));
}

CheckpointParts MakeCheckpoint(json config, DType dtype) {
  CheckpointParts parts;
  parts.config = std::move(config);
  const ModelFamily* family = FindFamily(parts.config.value("model_type", ""));
  Require(family != nullptr, "unknown family");
  ConfigReader reader("config.json", parts.config);
  const absl::StatusOr<ModelConfig> parsed = family->ParseConfig(reader);
  Require(parsed.ok(), parsed.status().ToString());
  const auto add = [&](const RequiredTensor& required) {
    int64_t count = 1;
    for (const int64_t dim : required.shape) count *= dim;
    parts.tensors.push_back(
        {.name = required.name,
         .dtype = absl::AsciiStrToUpper(DTypeName(dtype)),
         .shape = {required.shape.begin(), required.shape.end()},
         .bytes = ElementBytes(required.name, count, dtype)});
    return absl::OkStatus();
  };
  Require(VisitRouterTensors(*parsed, *family, add).ok() &&
              VisitExpertTensors(*parsed, *family, add).ok(),
          "tensors");
  return parts;
}

json TinyConfig(absl::string_view model_type) {
  json config = {{"model_type", std::string(model_type)},
                 {"torch_dtype", "float32"},
                 {"vocab_size", 32},
                 {"hidden_size", 16},
                 {"num_hidden_layers", 2},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"max_position_embeddings", 64},
                 {"num_experts_per_tok", 2},
                 {"hidden_act", "silu"},
                 {"eos_token_id", 2},
                 {"intermediate_size", 24}};
  if (model_type == "mixtral") {
    config["num_local_experts"] = 8;
    return config;
  }
  config["num_experts"] = 8;
  if (model_type == "qwen2_moe" || model_type == "qwen3_moe") {
    config["moe_intermediate_size"] = 12;
  }
  if (model_type == "qwen2_moe") config["shared_expert_intermediate_size"] = 20;
  return config;
}

}  // namespace expertmesh::testing
