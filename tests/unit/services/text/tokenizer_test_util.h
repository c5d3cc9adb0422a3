#pragma once

// Golden tokenizers, and small ones written into the test.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "services/text/tokenizer.h"

namespace expertmesh {

inline std::filesystem::path GoldenTokenizers() {
  return std::filesystem::path(EXPERTMESH_SOURCE_DIR) /
         "tests/golden/tokenizers";
}

// Names of the folders of golden tokenizers, sorted.
inline std::vector<std::string> GoldenNames() {
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(GoldenTokenizers())) {
    if (entry.is_directory()) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline nlohmann::json ReadGolden(const std::string& name, const char* file) {
  std::ifstream stream(GoldenTokenizers() / name / file);
  return nlohmann::json::parse(stream);
}

inline absl::StatusOr<std::unique_ptr<Tokenizer>> LoadGolden(
    const std::string& name) {
  return Tokenizer::Load(GoldenTokenizers() / name / "tokenizer.json");
}

// Loads a tokenizer.json with these contents.
inline absl::StatusOr<std::unique_ptr<Tokenizer>> LoadText(
    absl::string_view contents) {
  static std::atomic<int> counter{0};
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() /
      absl::StrCat("tokenizer_test_", ::getpid(), "_", counter++, ".json");
  std::ofstream(path) << contents;
  auto tokenizer = Tokenizer::Load(path);
  std::filesystem::remove(path);
  return tokenizer;
}

// A model with one token for each of `tokens`, ids in that order, no merges.
inline nlohmann::json ModelOf(const std::vector<std::string>& tokens) {
  nlohmann::json vocab = nlohmann::json::object();
  for (size_t i = 0; i < tokens.size(); ++i) vocab[tokens[i]] = i;
  return {
      {"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}};
}

}  // namespace expertmesh
