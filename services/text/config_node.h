#pragma once

// Reading tokenizer.json with errors that say where they are.

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh::text {

// One value of the file and its place there, such as
// "normalizer.normalizers[1]"; "" is the whole. Points into the document, which
// must outlive it. Every error is FAILED_PRECONDITION and starts with the
// place.
class ConfigNode {
 public:
  ConfigNode(const nlohmann::json* value, std::string place);

  const nlohmann::json& value() const { return *value_; }
  absl::Status Error(absl::string_view message) const;

  // Whether the object has `key` with a value other than null.
  bool Has(absl::string_view key) const;
  // Fails unless this is an object whose keys are all in `keys`: an option we
  // do not know might change what the tokenizer does.
  absl::Status AllowKeys(std::initializer_list<absl::string_view> keys) const;

  absl::StatusOr<ConfigNode> Get(absl::string_view key) const;
  // The elements of a list.
  absl::StatusOr<std::vector<ConfigNode>> GetList(absl::string_view key) const;
  absl::StatusOr<std::string> GetString(absl::string_view key) const;
  // A string of exactly one character.
  absl::StatusOr<std::string> GetCharacter(absl::string_view key) const;
  absl::StatusOr<bool> GetBool(absl::string_view key) const;
  absl::StatusOr<bool> GetBool(absl::string_view key, bool absent) const;
  // An integer in [0, 2^24): sizes and token ids. A vocabulary is a table.
  absl::StatusOr<int32_t> GetInt(absl::string_view key) const;

  // This value itself.
  absl::StatusOr<std::string> AsString() const;
  absl::StatusOr<int32_t> AsInt() const;

  // Nested sequences of steps, the deepest part of the file, end here.
  static constexpr int kMaxSequenceDepth = 8;

 private:
  const nlohmann::json* value_;
  std::string place_;
};

}  // namespace expertmesh::text
