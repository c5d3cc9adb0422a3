#pragma once

// The most memory that this process had resident since some moment.

#include <malloc.h>

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>

#include "tests/support/sanitized.h"

namespace expertmesh::testing {

// Starts to watch when it is made. One at a time in a process.
class PeakMemory {
 public:
  PeakMemory() {
    malloc_trim(0);  // else what others freed would hide what is needed
    std::ofstream refs("/proc/self/clear_refs");
    refs << "5" << std::flush;  // the peak falls to what is resident now
    if (refs.good()) before_bytes_ = Field("VmRSS:");
  }

  // The peak since then, above what was resident then; nothing where the
  // kernel does not say, or a sanitizer keeps what was freed.
  std::optional<int64_t> RiseBytes() const {
    if (kSanitized || !before_bytes_) return std::nullopt;
    return Field("VmHWM:") - *before_bytes_;
  }

 private:
  static int64_t Field(const std::string& name) {
    std::ifstream status("/proc/self/status");
    std::string word;
    int64_t kilobytes = 0;
    while (status >> word) {
      if (word == name && status >> kilobytes) break;
    }
    return kilobytes << 10;
  }

  std::optional<int64_t> before_bytes_;
};

}  // namespace expertmesh::testing
