#pragma once

// A checkpoint whose config.json says something else.

#include <string>

#include "absl/status/statusor.h"

namespace expertmesh::testing {

// A temporary folder with links to a checkpoint's files and a config of its
// own. Removed when destroyed.
class CheckpointVariant {
 public:
  // The same weights, but so many experts for each token. Errors: NOT_FOUND
  // where the folder has no config.json that names num_experts_per_tok.
  static absl::StatusOr<CheckpointVariant> WithTopK(
      const std::string& directory, int top_k);

  CheckpointVariant(CheckpointVariant&& other) noexcept;
  CheckpointVariant& operator=(CheckpointVariant&&) = delete;
  ~CheckpointVariant();

  const std::string& directory() const { return directory_; }

 private:
  explicit CheckpointVariant(std::string directory);

  std::string directory_;  // empty: moved from
};

}  // namespace expertmesh::testing
