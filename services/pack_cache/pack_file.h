#pragma once

// One file of packed matrices: written whole, checked whole, used where it is
// mapped.
//
//   page 0    PackFileHeader, zeros behind it
//   then      each matrix as it lies in memory, from a page boundary on
//
// Integers are those of the machine; one of another byte order sees another
// magic number.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/linalg/packed_matrix.h"

namespace expertmesh {

// What decides the bytes of a file, beside the weights' format, which its
// matrices have.
struct PackSource {
  std::string fingerprint;  // of the checkpoint; at most 63 characters
  // A checksum over some bytes of the tensors themselves, where they are at
  // hand; 0: they are not.
  uint64_t sample = 0;
};

// Writes to `path`, which must not exist. Errors: the system's, naming the
// path; a file that is left then is not whole.
absl::Status WritePackFile(const std::string& path, const PackSource& source,
                           absl::Span<const PackedMatrix> matrices);

// The matrices of a file. Errors: NOT_FOUND; FAILED_PRECONDITION for one that
// is not whole, of another layout, or of another source; both name the path.
absl::StatusOr<std::vector<PackedMatrix>> ReadPackFile(
    const std::string& path, const PackSource& source);

// 64 bits that any change of a few bytes changes: against broken disks and
// half-written files, not against forgery. At the speed of memory.
uint64_t PackChecksum(absl::string_view bytes);

}  // namespace expertmesh
