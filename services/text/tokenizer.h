#pragma once

// tokenizer.json of the Hugging Face tokenizers library → ids and back.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace expertmesh {

// Immutable after Load; thread-safe.
class Tokenizer {
 public:
  // Reads `path`, a tokenizer.json. Errors: NOT_FOUND; FAILED_PRECONDITION in
  // one line naming the file for JSON, model types or options we do not know.
  // "truncation" and "padding" have no effect; a warning is logged.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& path);
  ~Tokenizer();

  // Text to ids. Runs in time linear in the text (times log of the longest
  // pre-token). Errors: INVALID_ARGUMENT for text that is not UTF-8, naming the
  // offset of the first bad byte, and for text on which a regular expression of
  // the file backtracks without end.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              bool add_special_tokens) const;

  // Ids to text. Ids the vocabulary lacks decode to nothing.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special) const;

  // The id of the token written `token` in tokenizer.json, such as "</s>".
  std::optional<int32_t> TokenId(absl::string_view token) const;

  // Size of the vocabulary with added tokens: the highest id plus one.
  int32_t vocab_size() const;

 private:
  friend class StreamingDetokenizer;
  class Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Ids one by one to text that can be shown at once: the pieces concatenate to
// Decode of all ids, and no piece ends inside a UTF-8 sequence. One thread.
class StreamingDetokenizer {
 public:
  // `tokenizer` must outlive this.
  StreamingDetokenizer(const Tokenizer* tokenizer, bool skip_special);
  ~StreamingDetokenizer();

  // Takes `ids` for a text that has been shown already, which later ids
  // continue: pieces then concatenate to Decode of all ids without Decode of
  // these, where that is how it begins. Where it is not, because a later id
  // completes a character that these left unfinished, the whole character
  // comes. Before the first Push.
  void Resume(absl::Span<const int32_t> ids);
  // The text that `id` settles; often empty inside a character.
  std::string Push(int32_t id);
  // What is still held back, with U+FFFD for unfinished characters. Ends the
  // text: a later Push starts another.
  std::string Flush();

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace expertmesh
