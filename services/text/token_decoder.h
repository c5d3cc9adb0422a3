#pragma once

// The "decoder" of tokenizer.json: tokens back to text, one at a time.

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/text/config_node.h"
#include "services/text/pattern.h"

namespace expertmesh::text {

// Stages of decoding. In the tokenizers library each maps a list of tokens to
// another; here each takes and gives tokens one by one. After kFuse, kByteLevel
// or kJoin all text is one token, of which a stage sees portions.
struct DecodeStage {
  enum class Kind {
    kReplace,       // `content` for every `literal`
    kByteFallback,  // runs of <0xNN> to the text of these bytes
    kMetaspace,     // a space for `literal`, nothing in the first token
    kStrip,         // up to `start` and `stop` times `literal` off the ends
    kFuse,          // all tokens to one
    kByteLevel,     // the byte alphabet to bytes, and these to one text
    kJoin,          // all tokens to one, with spaces between
  };

  Kind kind;
  std::string literal = {};
  std::string content = {};
  size_t start = 0;
  size_t stop = 0;
  bool after_join = false;  // whether it sees portions of one token
};

// Immutable; thread-safe. Knows Sequence, Replace, ByteFallback, Metaspace,
// Strip, Fuse and ByteLevel.
class TokenDecoder {
 public:
  // Reads `root`.decoder; null or absent puts spaces between tokens.
  // Errors: FAILED_PRECONDITION naming the place.
  static absl::StatusOr<TokenDecoder> Build(const ConfigNode& root);

  // Does what depends on a token alone, once per vocabulary entry: the
  // replacements that come before all else. DecodeStream wants its result.
  absl::Status Prepare(std::string* token) const;

  const std::vector<DecodeStage>& stages() const { return stages_; }

 private:
  struct Replacement {
    std::shared_ptr<const Pattern> pattern;
    std::string content;
  };

  absl::Status AddStages(const ConfigNode& config, int depth);
  absl::Status AddReplace(const ConfigNode& config);
  absl::Status AddStage(const ConfigNode& config, DecodeStage stage);

  std::vector<Replacement> replacements_;
  std::vector<DecodeStage> stages_;
};

// One text in the making. Holds back only what a later token may change, so a
// token costs the same however long the text is. One thread.
class DecodeStream {
 public:
  // `decoder` must outlive this.
  explicit DecodeStream(const TokenDecoder* decoder);

  // Adds a prepared token.
  void Push(absl::string_view token);
  // Ends the text; the next token starts another.
  void Finish();
  // The text settled since the last call; whole characters.
  std::string Take();

 private:
  // What a stage remembers between tokens.
  struct State {
    std::string held;  // not settled yet
    size_t count = 0;  // tokens seen; for kStrip, literals stripped in front
  };

  void Feed(size_t stage, absl::string_view token);
  void FinishStage(size_t stage);

  void FeedByteFallback(size_t stage, absl::string_view token);
  void EndByteRun(size_t stage);

  const TokenDecoder* decoder_;
  std::vector<State> states_;
  std::string settled_;
};

}  // namespace expertmesh::text
