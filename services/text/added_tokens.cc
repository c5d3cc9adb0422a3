#include "services/text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/unicode.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

// \w of Rust's regex crate, by which the tokenizers library decides what a
// single word is. PCRE2 syntax.
constexpr absl::string_view kWordCharacter =
    R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}])";

// Where the white space that ends at `end` begins, not before `limit`.
size_t SpaceBefore(absl::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    const size_t start = PreviousBoundary(text, end);
    size_t offset = start;
    if (!IsWhiteSpace(NextCharacter(text, &offset))) break;
    end = start;
  }
  return end;
}

// Where the white space that begins at `begin` ends.
size_t SpaceAfter(absl::string_view text, size_t begin) {
  for (size_t offset = begin; offset < text.size(); begin = offset) {
    if (!IsWhiteSpace(NextCharacter(text, &offset))) break;
  }
  return begin;
}

absl::StatusOr<AddedToken> ReadToken(const ConfigNode& config,
                                     const Normalizer& normalizer) {
  RETURN_IF_ERROR(config.AllowKeys({"id", "content", "single_word", "lstrip",
                                    "rstrip", "normalized", "special"}));
  AddedToken token;
  ASSIGN_OR_RETURN(token.id, config.GetInt("id"));
  ASSIGN_OR_RETURN(token.content, config.GetString("content"));
  ASSIGN_OR_RETURN(token.single_word, config.GetBool("single_word"));
  ASSIGN_OR_RETURN(token.lstrip, config.GetBool("lstrip"));
  ASSIGN_OR_RETURN(token.rstrip, config.GetBool("rstrip"));
  ASSIGN_OR_RETURN(token.normalized, config.GetBool("normalized"));
  ASSIGN_OR_RETURN(token.special, config.GetBool("special"));
  token.decoded = token.content;
  if (token.normalized) RETURN_IF_ERROR(normalizer.Apply(&token.decoded));
  return token;
}

}  // namespace

AddedTokens::AddedTokens(Regex word_character)
    : word_character_(std::move(word_character)) {}

absl::StatusOr<AddedTokens> AddedTokens::Build(const ConfigNode& root,
                                               const BpeModel& model,
                                               const Normalizer& normalizer) {
  ASSIGN_OR_RETURN(Regex word_character, Regex::Compile(kWordCharacter));
  AddedTokens added(std::move(word_character));
  if (!root.Has("added_tokens")) return added;
  ASSIGN_OR_RETURN(const std::vector<ConfigNode> list,
                   root.GetList("added_tokens"));
  for (const ConfigNode& config : list) {
    RETURN_IF_ERROR(added.Add(config, model, normalizer));
  }
  RETURN_IF_ERROR(added.FillTries(root));
  return added;
}

absl::Status AddedTokens::Add(const ConfigNode& config, const BpeModel& model,
                              const Normalizer& normalizer) {
  ASSIGN_OR_RETURN(AddedToken token, ReadToken(config, normalizer));
  if (token.content.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckId(config, token, model));
  if (token.special) special_.insert(token.content);
  // A token listed twice is described by its last entry.
  const auto [entry, is_new] =
      index_of_.try_emplace(token.content, tokens_.size());
  if (is_new) {
    tokens_.push_back(std::move(token));
  } else {
    tokens_[entry->second] = std::move(token);
  }
  return absl::OkStatus();
}

// The tokenizers library ignores the file's ids: a token has the id of the
// model's vocabulary or the next free one. A file where they differ would mean
// one thing to it and another to us.
absl::Status AddedTokens::CheckId(const ConfigNode& config,
                                  const AddedToken& token,
                                  const BpeModel& model) {
  int32_t expected;
  if (const AddedToken* known = Find(token.content)) {
    expected = known->id;
  } else if (const auto id = model.TokenId(token.content)) {
    expected = *id;
  } else {
    expected = static_cast<int32_t>(model.vocab().size()) + num_new_ids_++;
  }
  if (token.id == expected) return absl::OkStatus();
  return config.Error(absl::StrCat("token ", token.content, " has id ",
                                   token.id, ", but ", expected,
                                   " by its place in the vocabulary"));
}

absl::Status AddedTokens::FillTries(const ConfigNode& root) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    // A token that normalizes to nothing is found nowhere.
    if (token.decoded.empty()) continue;
    TokenTrie& trie = token.normalized ? normalized_ : raw_;
    if (!trie.Insert(token.decoded, static_cast<int32_t>(i))) {
      return root.Error(
          absl::StrCat("two added tokens normalize to ", token.decoded));
    }
  }
  return absl::OkStatus();
}

const AddedToken* AddedTokens::Find(absl::string_view content) const {
  const auto found = index_of_.find(content);
  return found == index_of_.end() ? nullptr : &tokens_[found->second];
}

bool AddedTokens::IsSpecial(absl::string_view token) const {
  return special_.contains(token);
}

bool AddedTokens::IsWordCharacter(absl::string_view character) const {
  std::vector<Range> matches;
  return word_character_.FindAll(character, &matches).ok() && !matches.empty();
}

bool AddedTokens::StandsAlone(absl::string_view text,
                              const Range& match) const {
  if (match.begin > 0) {
    const size_t start = PreviousBoundary(text, match.begin);
    if (IsWordCharacter(text.substr(start, match.begin - start))) return false;
  }
  if (match.end < text.size()) {
    size_t end = match.end;
    NextCharacter(text, &end);
    if (IsWordCharacter(text.substr(match.end, end - match.end))) return false;
  }
  return true;
}

std::vector<TextSegment> AddedTokens::Cut(absl::string_view text,
                                          const TokenTrie& trie) const {
  std::vector<TextSegment> segments;
  size_t covered = 0;
  size_t at = 0;
  while ((at = trie.FindFirstByte(text, at)) < text.size()) {
    const auto found = trie.LongestPrefix(text.substr(at));
    if (!found.has_value()) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[found->value];
    Range match{at, at + found->length};
    // Even a match that is discarded below hides those that overlap it.
    at = match.end;
    if (token.single_word && !StandsAlone(text, match)) continue;
    if (token.lstrip) {
      // Not the white space that an earlier token took.
      match.begin = std::max(SpaceBefore(text, match.begin, covered), covered);
    }
    if (token.rstrip) match.end = SpaceAfter(text, match.end);
    // A token of white space of which nothing is left.
    if (match.begin >= match.end) continue;
    if (covered < match.begin) {
      segments.push_back({{covered, match.begin}, std::nullopt});
    }
    segments.push_back({match, token.id});
    covered = match.end;
  }
  if (covered < text.size()) {
    segments.push_back({{covered, text.size()}, std::nullopt});
  }
  return segments;
}

std::vector<TextSegment> AddedTokens::FindRaw(absl::string_view text) const {
  return Cut(text, raw_);
}

std::vector<TextSegment> AddedTokens::FindNormalized(
    absl::string_view text) const {
  return Cut(text, normalized_);
}

}  // namespace expertmesh::text
