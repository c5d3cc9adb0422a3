#pragma once

// A Hugging Face checkpoint folder: config.json, generation_config.json and
// safetensors, memory-mapped. Reading a tensor touches only its own pages.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/checkpoint/model_config.h"
#include "services/linalg/tensor_view.h"

namespace expertmesh {

// generation_config.json; absent fields are unset.
struct GenerationDefaults {
  std::vector<int32_t> eos_token_ids;
  std::optional<bool> do_sample;
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int32_t> max_new_tokens;
};

// Immutable after Open; thread-safe.
class Checkpoint {
 public:
  // Parses and checks config, generation config and every shard's header; reads
  // no tensor data. Errors (one line that names the file, and the tensor where
  // there is one): NOT_FOUND for a missing folder, file or shard;
  // FAILED_PRECONDITION for anything malformed.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& directory);
  ~Checkpoint();

  const std::string& directory() const { return directory_; }
  std::string name() const;  // the folder's own name
  const ModelConfig& config() const { return config_; }
  const ModelFamily& family() const { return *family_; }
  const GenerationDefaults& generation_defaults() const { return defaults_; }

  bool HasTensor(absl::string_view name) const;
  // A view into the mapping, valid as long as the checkpoint.
  // Errors: FAILED_PRECONDITION naming file and tensor when it is missing, its
  // dtype is not f32, bf16 or f16, or its shape is not `shape`.
  absl::StatusOr<TensorView> Tensor(absl::string_view name,
                                    absl::Span<const int64_t> shape) const;

  // Lets the kernel drop the pages of a tensor that has been copied elsewhere,
  // so that resident memory is not counted twice.
  void Release(const TensorView& tensor) const;

  // Names the contents: a hash over config and all tensor names, shapes, types,
  // offsets and file sizes (not over tensor bytes: that would read them all).
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  struct Files;
  Checkpoint();

  std::string directory_;
  ModelConfig config_;
  const ModelFamily* family_ = nullptr;
  GenerationDefaults defaults_;
  std::string fingerprint_;
  std::unique_ptr<Files> files_;
};

}  // namespace expertmesh
