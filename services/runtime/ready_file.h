#pragma once

// Tells whoever started this process where it listens.

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// Puts `contents` and a newline into `path` in one step: a reader sees no file
// or the whole one. Errors: UNAVAILABLE naming the path and the reason.
absl::Status WriteReadyFile(const std::string& path,
                            absl::string_view contents);

}  // namespace expertmesh
