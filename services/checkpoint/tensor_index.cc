#include "services/checkpoint/tensor_index.h"

#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

constexpr size_t kMaxIndexBytes = size_t{100} << 20;

bool IsPlainFileName(absl::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find('/') == absl::string_view::npos &&
         name.find('\0') == absl::string_view::npos;
}

using ShardContents = std::map<std::string, std::vector<std::string>>;

// weight_map turned round: shard → tensors.
absl::StatusOr<ShardContents> ParseIndex(const std::string& path,
                                         const nlohmann::json& index) {
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": has no object weight_map"));
  }
  ShardContents shards;
  for (const auto& [tensor, shard] : weight_map->items()) {
    if (!shard.is_string() ||
        !IsPlainFileName(shard.get_ref<const std::string&>())) {
      return absl::FailedPreconditionError(absl::StrCat(
          path, ": tensor ", Quoted(tensor), " is mapped to ",
          shard.is_string() ? Quoted(shard.get<std::string>()) : Shown(shard),
          ", which is not the name of a file in the folder"));
    }
    shards[shard.get<std::string>()].push_back(tensor);
  }
  return shards;
}

}  // namespace

absl::StatusOr<TensorIndex> TensorIndex::Open(const std::string& directory) {
  TensorIndex index;
  index.path_ = directory + "/model.safetensors";
  std::error_code ignored;
  if (!std::filesystem::exists(index.path_, ignored)) {
    RETURN_IF_ERROR(index.OpenShards(directory));
    return index;
  }
  ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(index.path_));
  for (const TensorInfo& tensor : file.tensors()) {
    index.file_of_.emplace(tensor.name, 0);
  }
  index.files_.push_back(std::move(file));
  return index;
}

absl::Status TensorIndex::OpenShards(const std::string& directory) {
  path_ = directory + "/model.safetensors.index.json";
  const absl::StatusOr<nlohmann::json> json =
      ReadJsonFile(path_, kMaxIndexBytes);
  if (absl::IsNotFound(json.status())) {
    return absl::NotFoundError(absl::StrCat(
        directory,
        ": holds neither model.safetensors nor model.safetensors.index.json"));
  }
  if (!json.ok()) return json.status();
  ASSIGN_OR_RETURN(const ShardContents shards, ParseIndex(path_, *json));
  for (const auto& [name, tensors] : shards) {
    absl::StatusOr<SafetensorsFile> opened =
        SafetensorsFile::Open(absl::StrCat(directory, "/", name));
    if (absl::IsNotFound(opened.status())) {
      return absl::NotFoundError(absl::StrCat(
          opened.status().message(), "; the index names it for tensor ",
          Quoted(tensors.front()), " and ", tensors.size() - 1, " more"));
    }
    ASSIGN_OR_RETURN(SafetensorsFile file, std::move(opened));
    for (const std::string& tensor : tensors) {
      if (file.Find(tensor) == nullptr) {
        return absl::FailedPreconditionError(
            absl::StrCat(file.path(), ": tensor ", Quoted(tensor),
                         " is missing, although the index names this shard"));
      }
      file_of_.emplace(tensor, files_.size());
    }
    files_.push_back(std::move(file));
  }
  return absl::OkStatus();
}

TensorIndex::Entry TensorIndex::Find(absl::string_view name) const {
  const auto found = file_of_.find(name);
  if (found == file_of_.end()) return {};
  const SafetensorsFile& file = files_[found->second];
  return {&file, file.Find(name)};
}

}  // namespace expertmesh
