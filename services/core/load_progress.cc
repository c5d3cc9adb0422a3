#include "services/core/load_progress.h"

#include <cmath>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/core/log.h"

namespace expertmesh {
namespace {

bool writes_progress_lines = false;

}  // namespace

LoadProgress::LoadProgress(int64_t total_bytes, const Clock* clock)
    : total_bytes_(total_bytes),
      clock_(*clock),
      started_(clock->Now()),
      next_report_(started_ + kQuiet) {}

std::optional<LoadProgress::Report> LoadProgress::Add(int64_t bytes) {
  MutexLock lock(&mutex_);
  loaded_bytes_ += bytes;
  const absl::Duration now = clock_.Now();
  const bool is_over = loaded_bytes_ >= total_bytes_;
  if (is_over ? !has_reported_ : now < next_report_ || loaded_bytes_ <= 0) {
    return std::nullopt;
  }
  has_reported_ = !is_over;
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
  if (!writes_progress_lines) return;
  WriteLogLine(ProgressLine(report));
}

void WriteProgressLines() { writes_progress_lines = true; }

std::string ProgressLine(const LoadProgress::Report& report) {
  return absl::StrCat("progress: ", report.loaded_bytes, " of ",
                      report.total_bytes, " bytes");
}

std::optional<LoadedBytes> ParseProgressLine(absl::string_view line) {
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
  LoadedBytes bytes;
  if (words.size() != 5 || words[0] != "progress:" || words[2] != "of" ||
      words[4] != "bytes" || !absl::SimpleAtoi(words[1], &bytes.loaded) ||
      !absl::SimpleAtoi(words[3], &bytes.total)) {
    return std::nullopt;
  }
  return bytes;
}

}  // namespace expertmesh
