#pragma once

// Which file of a checkpoint folder holds which tensor.

#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/checkpoint/safetensors.h"

namespace expertmesh {

// The safetensors files of one folder, mapped. Immutable; thread-safe.
class TensorIndex {
 public:
  struct Entry {
    const SafetensorsFile* file = nullptr;
    const TensorInfo* tensor = nullptr;
  };

  // Opens model.safetensors, or else the shards that
  // model.safetensors.index.json names. Shards must lie in the folder itself:
  // a weight_map may not lead elsewhere.
  // Errors: NOT_FOUND for a missing file, FAILED_PRECONDITION for a malformed
  // one or a tensor that its shard lacks.
  static absl::StatusOr<TensorIndex> Open(const std::string& directory);

  // An empty entry when there is no such tensor.
  Entry Find(absl::string_view name) const;

  // The file a missing tensor was to be found in, for error messages.
  const std::string& path() const { return path_; }
  // In order of name.
  const std::vector<SafetensorsFile>& files() const { return files_; }

 private:
  absl::Status OpenShards(const std::string& directory);

  std::string path_;  // of the single file, or of the index
  std::vector<SafetensorsFile> files_;
  absl::flat_hash_map<std::string, size_t> file_of_;  // tensor name → files_
};

}  // namespace expertmesh
