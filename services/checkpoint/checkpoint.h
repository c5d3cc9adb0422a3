#pragma once

// A Hugging Face checkpoint folder: config.json, generation_config.json and
// safetensors, memory-mapped. Reading a tensor touches only its own pages.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/checkpoint/generation_config.h"
#include "services/checkpoint/model_config.h"
#include "services/linalg/tensor_view.h"

namespace expertmesh {

// Immutable after Open; thread-safe.
class Checkpoint {
 public:
  // Whether all tensors' bytes are in the files, or some are holes.
  enum class Data { kWhole, kPartial };

  // Parses and checks config, generation config and every shard's header, and
  // that each tensor the model needs is there in the right shape; reads no
  // tensor data but a few bytes each, and a head that repeats the embedding
  // table, where the data is whole. Errors (one line that names the file, and
  // the tensor where there is one): NOT_FOUND for a missing folder, file or
  // shard; FAILED_PRECONDITION for anything malformed.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& directory, Data data = Data::kWhole);
  ~Checkpoint();

  const std::string& directory() const { return directory_; }
  std::string name() const;  // the folder's own name
  const ModelConfig& config() const { return config_; }
  const ModelFamily& family() const { return *family_; }
  const GenerationDefaults& generation_defaults() const { return defaults_; }

  bool HasTensor(absl::string_view name) const;
  // The path of the file that holds the tensor; of the index when none does.
  const std::string& FileOf(absl::string_view name) const;
  // A view into the mapping, valid as long as the checkpoint.
  // Errors: FAILED_PRECONDITION naming file and tensor when it is missing, its
  // dtype is not f32, bf16 or f16, or its shape is not `shape`.
  absl::StatusOr<TensorView> Tensor(absl::string_view name,
                                    absl::Span<const int64_t> shape) const;

  // Starts reading a tensor from disk without waiting. Worth calling before a
  // whole tensor is read: mapped pages are otherwise fetched one by one.
  void Prefetch(const TensorView& tensor) const;

  // Lets the kernel drop the pages of a tensor that has been copied elsewhere,
  // so that resident memory is not counted twice.
  void Release(const TensorView& tensor) const;

  // Names the contents: a hash over config, all tensor names, shapes, types,
  // offsets and file sizes, and the first bytes of some (VisitSampledTensors).
  const std::string& fingerprint() const { return fingerprint_; }

  // The fingerprint, and when the files were written where they are whole: for
  // what is kept of them on this host, which a byte that the fingerprint does
  // not see would make stale.
  const std::string& local_id() const { return local_id_; }

 private:
  struct Files;
  Checkpoint();

  absl::Status ReadConfig();
  absl::Status CheckTensors(Data data) const;
  absl::Status CheckJoinedTypes() const;
  absl::Status CheckTiedHead() const;
  absl::Status ComputeFingerprint();
  absl::Status ComputeLocalId(Data data);

  std::string directory_;
  ModelConfig config_;
  const ModelFamily* family_ = nullptr;
  GenerationDefaults defaults_;
  std::string config_text_;  // config.json in one normal form
  std::string fingerprint_;
  std::string local_id_;
  std::unique_ptr<Files> files_;
};

}  // namespace expertmesh
