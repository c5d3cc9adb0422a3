#pragma once

// Packed matrices on disk, so that the next start reads them instead of
// packing.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/linalg/packed_matrix.h"
#include "services/pack_cache/pack_file.h"

namespace expertmesh {

// A folder of pack files of one checkpoint, which any number of services may
// share. Never a reason not to serve: what cannot be read is packed anew by
// the caller, what cannot be written is left out, and the log says so.
// Thread-safe.
class PackCache {
 public:
  // Keeps files in `directory`/`checkpoint`, which is made where it is missing.
  // `checkpoint`: its local_id.
  PackCache(const std::string& directory, const std::string& checkpoint);

  // The matrices kept under `name`, or none. `sample`: see PackSource.
  std::vector<PackedMatrix> Load(absl::string_view name, uint64_t sample);
  // Keeps matrices under `name`, a part of a file's name, in the place of what
  // was there.
  void Store(absl::string_view name, uint64_t sample,
             absl::Span<const PackedMatrix> matrices);

  // So far: names that Load had, those it had not, and those that Store kept.
  int64_t hits() const { return hits_.load(); }
  int64_t misses() const { return misses_.load(); }
  int64_t stored() const { return stored_.load(); }

 private:
  std::string PathOf(absl::string_view name) const;
  // What writers that were killed have left.
  void RemoveLeftovers() const;

  const std::string folder_;
  const std::string fingerprint_;
  const std::string writer_;  // tells its temporary files from others'
  std::atomic<int64_t> hits_{0};
  std::atomic<int64_t> misses_{0};
  std::atomic<int64_t> stored_{0};
  std::atomic<int64_t> next_temporary_{0};
  std::atomic<bool> writable_{true};  // until a file could not be written
};

// Whether `matrix` is what packing a [n, k] tensor to `format` gives.
bool IsPackedAs(const PackedMatrix& matrix, int64_t n, int64_t k,
                WeightFormat format);

}  // namespace expertmesh
