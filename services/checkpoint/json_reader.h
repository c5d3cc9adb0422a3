#pragma once

// Strict reading of JSON that came with a checkpoint.

#include <cstddef>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// Parses `text`, which must hold one JSON object. Nesting is bounded and
// repeated keys are refused: two readers of the same file must never see two
// different values.
// Errors (one line starting with `file`): FAILED_PRECONDITION.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view file,
                                               absl::string_view text);

// The same for a whole file of at most `max_bytes`.
// Errors: also NOT_FOUND when the file is missing.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path,
                                            size_t max_bytes);

// For error messages: a name, quoted, or a value from a file, on one line and
// of bounded length whatever it contains.
std::string Quoted(absl::string_view name);
std::string Shown(const nlohmann::json& value);

}  // namespace expertmesh
