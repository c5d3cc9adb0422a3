#pragma once

// Splitting at the matches of a pattern.

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/text/config_node.h"
#include "services/text/pattern.h"
#include "services/text/pre_tokenizer.h"

namespace expertmesh::text {

// What becomes of the matches ("delimiters").
enum class SplitBehavior {
  kRemoved,
  kIsolated,            // each is a piece
  kMergedWithPrevious,  // appended to the text before it
  kMergedWithNext,      // put before the text after it
  kContiguous,          // a run of adjacent ones is a piece
};

// Reads `owner`.behavior.
absl::StatusOr<SplitBehavior> ParseSplitBehavior(const ConfigNode& owner);

// Splits pieces. Immutable; thread-safe; copies share the pattern.
class PieceSplitter {
 public:
  // With `invert`, what lies between the matches is the delimiter.
  PieceSplitter(std::shared_ptr<const Pattern> pattern, SplitBehavior behavior,
                bool invert);

  // Errors: as Regex::FindAll.
  absl::Status operator()(PieceList* list) const;

 private:
  std::shared_ptr<const Pattern> pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

}  // namespace expertmesh::text
