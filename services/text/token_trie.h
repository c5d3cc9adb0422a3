#pragma once

// Finds the longest of a set of strings that a text continues with.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace expertmesh::text {

// Thread-safe once filled.
class TokenTrie {
 public:
  struct Match {
    size_t length;  // bytes
    int32_t value;
  };

  TokenTrie();

  // Returns false if `token` is there already. Requires: not empty.
  bool Insert(absl::string_view token, int32_t value);

  // Where in `text`, at or after `from`, the first byte of some token stands;
  // text.size() if nowhere.
  size_t FindFirstByte(absl::string_view text, size_t from) const {
    while (from < text.size() &&
           root_children_[static_cast<uint8_t>(text[from])] == kNone) {
      ++from;
    }
    return from;
  }

  // The longest token that `text` starts with.
  std::optional<Match> LongestPrefix(absl::string_view text) const;

 private:
  static constexpr int32_t kNone = -1;

  // The node reached from `node` by `byte`, or kNone.
  int32_t Child(int32_t node, char byte) const;

  // Nodes are numbered from the root, 0; most texts leave at the root, which
  // therefore has a table.
  std::array<int32_t, 256> root_children_;
  absl::flat_hash_map<uint64_t, int32_t> children_;  // by node << 8 | byte
  std::vector<int32_t> values_;                      // by node; kNone: no token
};

}  // namespace expertmesh::text
