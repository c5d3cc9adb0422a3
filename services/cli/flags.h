#pragma once

// Values of flags that several commands take.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// Validators, which turn a wrong value into a usage error.
CLI::Validator IsHostPort();
CLI::Validator IsTokenIds();
CLI::Validator IsUtf8();
CLI::Validator IsPoolSize();
// A whole number in [least, most], written in decimal digits.
CLI::Validator IsWholeNumber(
    uint64_t least, uint64_t most = std::numeric_limits<int64_t>::max());
// A finite number of at least 0, or above 0.
CLI::Validator IsNonNegative();
CLI::Validator IsPositive();

// "1,2,3", with or without spaces and brackets. Errors: INVALID_ARGUMENT naming
// the part that is no token id. An empty list is none.
absl::StatusOr<std::vector<uint32_t>> ParseTokenIds(absl::string_view text);

// "hot=3". Errors: INVALID_ARGUMENT quoting the text.
struct PoolSize {
  std::string pool;
  uint32_t services = 0;
};
absl::StatusOr<PoolSize> ParsePoolSize(absl::string_view text);

// OK for well-formed UTF-8, which is all that Protobuf strings may hold; else
// INVALID_ARGUMENT naming the offset of the first bad byte.
absl::Status CheckUtf8(absl::string_view text);

// The whole file. Errors: NOT_FOUND naming the path and the reason.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace expertmesh
