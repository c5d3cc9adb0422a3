#pragma once

// The "normalizer" of tokenizer.json: what is done to text before it is split.

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/text/config_node.h"

namespace expertmesh::text {

// Immutable; thread-safe. Knows Sequence, NFC, NFD, NFKC, NFKD, Prepend,
// Replace, Lowercase, Strip and ByteLevel.
class Normalizer {
 public:
  // Reads `root`.normalizer; null or absent does nothing.
  // Errors: FAILED_PRECONDITION naming the place.
  static absl::StatusOr<Normalizer> Build(const ConfigNode& root);

  bool empty() const { return steps_.empty(); }

  // Requires valid UTF-8, and leaves it so. Errors: as Regex::FindAll.
  absl::Status Apply(std::string* text) const;

 private:
  using Step = std::function<absl::Status(std::string*)>;

  absl::Status AddSteps(const ConfigNode& config, int depth);

  std::vector<Step> steps_;
};

}  // namespace expertmesh::text
