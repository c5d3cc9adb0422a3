#include "services/core/load_progress.h"

#include <cmath>

#include "services/core/log.h"

namespace expertmesh {

LoadProgress::LoadProgress(int64_t total_bytes, const Clock* clock)
    : total_bytes_(total_bytes),
      clock_(*clock),
      started_(clock->Now()),
      next_report_(started_ + kQuiet) {}

std::optional<LoadProgress::Report> LoadProgress::Add(int64_t bytes) {
  MutexLock lock(&mutex_);
  loaded_bytes_ += bytes;
  const absl::Duration now = clock_.Now();
  // The end has a line of its own.
  if (now < next_report_ || loaded_bytes_ <= 0 ||
      loaded_bytes_ >= total_bytes_) {
    return std::nullopt;
  }
  next_report_ = now + kInterval;
  const double share =
      static_cast<double>(loaded_bytes_) / static_cast<double>(total_bytes_);
  return Report{.percent = static_cast<int64_t>(100 * share),
                .loaded_bytes = loaded_bytes_,
                .total_bytes = total_bytes_,
                .left = (now - started_) * ((1 - share) / share)};
}

void LogProgress(const char* what, const LoadProgress::Report& report) {
  Log(LogLevel::kInfo, what,
      {{"percent", report.percent},
       {"loaded_bytes", report.loaded_bytes},
       {"total_bytes", report.total_bytes},
       {"seconds_left", std::ceil(absl::ToDoubleSeconds(report.left))}});
}

}  // namespace expertmesh
