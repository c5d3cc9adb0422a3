#pragma once

// The "pre_tokenizer" of tokenizer.json: cuts text into the pieces that BPE
// works on, one by one.

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/text/config_node.h"

namespace expertmesh::text {

// Pieces of one text, in order; never empty ones. Kept as ranges of one
// string, so that a step allocates nothing per piece.
struct PieceList {
  struct Piece {
    size_t begin;
    size_t end;
    // Whether it begins where the user's text begins: Metaspace may prepend
    // there only.
    bool starts_text;
  };

  // One piece: all of `whole`.
  PieceList(std::string whole, bool starts_text);

  absl::string_view View(const Piece& piece) const {
    return absl::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }

  std::string text;
  std::vector<Piece> pieces;
};

// Immutable; thread-safe. Knows Sequence, Split, ByteLevel, Metaspace, Digits,
// Punctuation, Whitespace and WhitespaceSplit.
class PreTokenizer {
 public:
  // Reads `root`.pre_tokenizer; null or absent leaves text whole.
  // Errors: FAILED_PRECONDITION naming the place.
  static absl::StatusOr<PreTokenizer> Build(const ConfigNode& root);

  // Errors: as Regex::FindAll.
  absl::Status Apply(PieceList* pieces) const;

 private:
  using Step = std::function<absl::Status(PieceList*)>;

  absl::Status AddSteps(const ConfigNode& config, int depth);

  std::vector<Step> steps_;
};

}  // namespace expertmesh::text
