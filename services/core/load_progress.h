#pragma once

// How far a long load is, now and then.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh {

// Says nothing of a load that is over within kQuiet, and after that one line
// each kInterval at most, and one at the end. Thread-safe.
class LoadProgress {
 public:
  static constexpr absl::Duration kQuiet = absl::Seconds(2);
  static constexpr absl::Duration kInterval = absl::Seconds(3);

  struct Report {
    int64_t percent = 0;
    int64_t loaded_bytes = 0;
    int64_t total_bytes = 0;
    absl::Duration left;  // at the pace so far
  };

  // The load begins now. `clock` outlives this.
  explicit LoadProgress(int64_t total_bytes,
                        const Clock* clock = Clock::Real());

  // So many bytes more are loaded. Returns what to say now, if anything.
  std::optional<Report> Add(int64_t bytes);

 private:
  const int64_t total_bytes_;
  const Clock& clock_;
  const absl::Duration started_;
  Mutex mutex_;
  int64_t loaded_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool has_reported_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration next_report_ ABSL_GUARDED_BY(mutex_);
};

// Logs a report: `what` percent=42 loaded_bytes=… total_bytes=… seconds_left=….
// After WriteProgressLines also writes it as a line of its own.
void LogProgress(const char* what, const LoadProgress::Report& report);

// For a launcher, which shows the loads of several processes as one: from now
// on reports are lines on standard error whatever is logged. Once at start.
void WriteProgressLines();

// "progress: 123 of 456 bytes".
std::string ProgressLine(const LoadProgress::Report& report);
// Its bytes; nothing for any other line.
struct LoadedBytes {
  int64_t loaded = 0;
  int64_t total = 0;
};
std::optional<LoadedBytes> ParseProgressLine(absl::string_view line);

}  // namespace expertmesh
