#pragma once

// The "added_tokens" of tokenizer.json: tokens found in text as they stand,
// before the model sees it.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/text/bpe_model.h"
#include "services/text/config_node.h"
#include "services/text/normalizer.h"
#include "services/text/regex.h"
#include "services/text/token_trie.h"

namespace expertmesh::text {

struct AddedToken {
  int32_t id;
  std::string content;
  bool single_word;  // only between characters that are not of words
  bool lstrip;       // takes the white space before it
  bool rstrip;       // takes the white space after it
  bool normalized;   // sought in normalized text, in its normalized form
  bool special;      // left out of text on request
  // What it decodes to: the normalized form, or the content.
  std::string decoded;
};

// A part of a text: an added token, or what stands between two.
struct TextSegment {
  Range range;
  std::optional<int32_t> id;
};

// Thread-safe after Build.
class AddedTokens {
 public:
  // Reads `root`.added_tokens; absent means none.
  // Errors: FAILED_PRECONDITION naming the place.
  static absl::StatusOr<AddedTokens> Build(const ConfigNode& root,
                                           const BpeModel& model,
                                           const Normalizer& normalizer);

  // Cuts `text` at the tokens sought before normalization, or after it. Of
  // tokens that start at one place the longest is taken.
  std::vector<TextSegment> FindRaw(absl::string_view text) const;
  std::vector<TextSegment> FindNormalized(absl::string_view text) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedToken* Find(absl::string_view content) const;
  // Whether some special token is written `token`.
  bool IsSpecial(absl::string_view token) const;

 private:
  explicit AddedTokens(Regex word_character);

  absl::Status Add(const ConfigNode& config, const BpeModel& model,
                   const Normalizer& normalizer);
  absl::Status CheckId(const ConfigNode& config, const AddedToken& token,
                       const BpeModel& model);
  absl::Status FillTries(const ConfigNode& root);
  bool IsWordCharacter(absl::string_view character) const;
  bool StandsAlone(absl::string_view text, const Range& match) const;
  std::vector<TextSegment> Cut(absl::string_view text,
                               const TokenTrie& trie) const;

  Regex word_character_;
  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<std::string, size_t> index_of_;  // into tokens_
  absl::flat_hash_set<std::string> special_;
  int32_t num_new_ids_ = 0;
  TokenTrie raw_;  // values are indices into tokens_
  TokenTrie normalized_;
};

}  // namespace expertmesh::text
