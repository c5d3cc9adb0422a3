#pragma once

// Addresses of a pool's services, as a file lists them.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh::router {

// Parses HOST:PORT on each line; spaces, empty lines and those that begin with
// "#" are skipped. No address at all must be said with the line "none": a file
// that says nothing is likely one that is being written.
// Errors: INVALID_ARGUMENT naming the line; NOT_FOUND for a text that says
// nothing.
absl::StatusOr<std::vector<std::string>> ParseAddressFile(
    absl::string_view text);

// Reads such a file. Errors: also UNAVAILABLE where it cannot be read or is
// larger than a MiB. All name the file.
absl::StatusOr<std::vector<std::string>> ReadAddressFile(
    const std::string& path);

}  // namespace expertmesh::router
