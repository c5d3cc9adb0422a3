#pragma once

// A checkpoint on disk that fills up as its tensors are pulled.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "expertmesh/expert/v1/weights.pb.h"
#include "services/checkpoint/tensor_index.h"

namespace expertmesh {

// One folder named after the checkpoint's fingerprint. It looks like the
// checkpoint itself: its small files, and safetensors files with the right
// headers and holes where tensors are not here yet, which take no space. A
// journal says which bytes were written and their checksums; what was written
// by an earlier run is believed only after reading it back, and what is not a
// tensor only after comparing it with a manifest. So neither a kill nor a
// damaged disk leaves wrong weights, and a pull goes on where it stopped.
//
// Services of one machine may share the folder: hold a tensor's Lock around
// Have and Write. Used by one thread at a time.
class WeightCache {
 public:
  // Keeps other services off the tensor until it is destroyed; not longer than
  // the cache.
  using Lock = std::shared_ptr<void>;

  // Lays the folder out below `root`, or mends the one that is there where a
  // small file or a header differs from the manifest's. Errors:
  // FAILED_PRECONDITION for a manifest that is none of a checkpoint;
  // UNAVAILABLE naming a file that cannot be written.
  static absl::StatusOr<std::unique_ptr<WeightCache>> Create(
      const std::string& root, const expert::v1::Manifest& manifest);
  // The only checkpoint below `root`. Errors: NOT_FOUND where there is none, or
  // more than one.
  static absl::StatusOr<std::unique_ptr<WeightCache>> OpenOnly(
      const std::string& root);
  ~WeightCache();

  const std::string& directory() const { return directory_; }
  const std::string& fingerprint() const { return fingerprint_; }

  // Bytes of a whole tensor. Errors: NOT_FOUND.
  absl::StatusOr<uint64_t> TensorBytes(const std::string& tensor) const;

  // Waits for its turn. Errors: NOT_FOUND; UNAVAILABLE naming the file;
  // CANCELLED soon after `stop` is requested.
  absl::StatusOr<Lock> Acquire(const std::string& tensor,
                               const std::stop_token& stop);
  // How many of the tensor's first bytes are here, checked. Requires the lock.
  absl::StatusOr<uint64_t> Have(const std::string& tensor);
  // Adds checked bytes at `offset`. Requires the lock, and that they lie inside
  // the tensor. Errors: UNAVAILABLE naming the file, say a full disk.
  absl::Status Write(const std::string& tensor, uint64_t offset,
                     absl::string_view data, uint32_t crc32c);

 private:
  struct Record {
    uint64_t length = 0;
    uint32_t crc32c = 0;
  };
  using Records = std::map<uint64_t, Record>;  // by offset

  WeightCache(std::string directory, std::string fingerprint, TensorIndex index,
              int journal);
  static absl::StatusOr<std::unique_ptr<WeightCache>> Open(
      const std::string& root, const std::string& fingerprint);

  // Takes in what was appended since, by whomever.
  absl::Status ReadJournal();
  void TakeLine(absl::string_view line);
  // The file that holds a tensor, open for writing.
  absl::StatusOr<int> FileOf(const TensorIndex::Entry& entry);

  const std::string directory_;
  const std::string fingerprint_;
  const TensorIndex index_;
  const int journal_;  // file descriptor
  uint64_t journal_read_ = 0;
  std::map<std::string, Records> records_;    // by tensor
  std::map<std::string, uint64_t> verified_;  // bytes, by tensor
  std::map<std::string, int> files_;          // descriptors, by path
};

}  // namespace expertmesh
