#include "tests/support/checkpoint_variant.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertmesh::testing {

CheckpointVariant::CheckpointVariant(std::string directory)
    : directory_(std::move(directory)) {}

CheckpointVariant::CheckpointVariant(CheckpointVariant&& other) noexcept
    : directory_(std::exchange(other.directory_, "")) {}

CheckpointVariant::~CheckpointVariant() {
  std::error_code ignored;
  if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
}

absl::StatusOr<CheckpointVariant> CheckpointVariant::WithTopK(
    const std::string& directory, int top_k) {
  std::ifstream in(directory + "/config.json");
  const std::string config((std::istreambuf_iterator<char>(in)),
                           std::istreambuf_iterator<char>());
  const std::regex pattern("\"num_experts_per_tok\": *[0-9]+");
  if (!std::regex_search(config, pattern)) {
    return absl::NotFoundError(
        absl::StrCat(directory, " has no config with num_experts_per_tok"));
  }
  std::string name =
      std::filesystem::temp_directory_path() / "expertmesh-variant-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) {
    return absl::InternalError("no temporary folder");
  }
  CheckpointVariant variant(std::move(name));
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    if (file.path().filename() == "config.json") continue;
    std::filesystem::create_symlink(
        file.path(), variant.directory() / file.path().filename());
  }
  std::ofstream(variant.directory() + "/config.json") << std::regex_replace(
      config, pattern, absl::StrCat("\"num_experts_per_tok\": ", top_k));
  return variant;
}

}  // namespace expertmesh::testing
