#pragma once

// One safetensors file: u64 little-endian header length, JSON header
// {name: {dtype, shape, data_offsets}}, then the tensors' bytes.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/checkpoint/mapped_file.h"

namespace expertmesh {

struct TensorInfo {
  std::string name;
  std::string dtype;  // as spelled in the file: "F32", "I64", …
  absl::InlinedVector<int64_t, 4> shape;
  uint64_t begin = 0;  // bytes from the end of the header
  uint64_t end = 0;
};

// Reads the header's JSON. `data_bytes` is what the file holds after it. As the
// format demands, the tensors must cover those bytes exactly, each as long as
// its type and shape say. `file` names the source in errors.
// Errors: FAILED_PRECONDITION naming file and tensor.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(
    absl::string_view file, absl::string_view json, uint64_t data_bytes);

// A mapped file whose header has been checked. Immutable; thread-safe.
class SafetensorsFile {
 public:
  // Errors: NOT_FOUND for a missing file, FAILED_PRECONDITION for a malformed
  // one, naming file and tensor.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const MappedFile& mapping() const { return mapping_; }
  // In ascending order of their bytes.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // nullptr when there is no such tensor.
  const TensorInfo* Find(absl::string_view name) const;
  // First byte of a tensor of this file.
  const std::byte* data(const TensorInfo& tensor) const {
    return mapping_.data() + data_start_ + tensor.begin;
  }

 private:
  SafetensorsFile(std::string path, MappedFile mapping, uint64_t data_start,
                  std::vector<TensorInfo> tensors);

  std::string path_;
  MappedFile mapping_;
  uint64_t data_start_ = 0;
  std::vector<TensorInfo> tensors_;
  absl::flat_hash_map<std::string, size_t> index_;  // name → tensors_
};

}  // namespace expertmesh
