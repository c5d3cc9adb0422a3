#include "services/text/token_trie.h"

namespace expertmesh::text {
namespace {

uint64_t ChildKey(int32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte);
}

}  // namespace

TokenTrie::TokenTrie() : values_(1, kNone) { root_children_.fill(kNone); }

int32_t TokenTrie::Child(int32_t node, char byte) const {
  if (node == 0) return root_children_[static_cast<uint8_t>(byte)];
  const auto found = children_.find(ChildKey(node, byte));
  return found == children_.end() ? kNone : found->second;
}

bool TokenTrie::Insert(absl::string_view token, int32_t value) {
  int32_t node = 0;
  for (char byte : token) {
    int32_t child = Child(node, byte);
    if (child == kNone) {
      child = static_cast<int32_t>(values_.size());
      values_.push_back(kNone);
      if (node == 0) {
        root_children_[static_cast<uint8_t>(byte)] = child;
      } else {
        children_[ChildKey(node, byte)] = child;
      }
    }
    node = child;
  }
  if (values_[node] != kNone) return false;
  values_[node] = value;
  return true;
}

std::optional<TokenTrie::Match> TokenTrie::LongestPrefix(
    absl::string_view text) const {
  std::optional<Match> longest;
  int32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    node = Child(node, text[i]);
    if (node == kNone) break;
    if (values_[node] != kNone) longest = Match{i + 1, values_[node]};
  }
  return longest;
}

}  // namespace expertmesh::text
