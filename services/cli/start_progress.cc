#include "services/cli/start_progress.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace expertmesh {

StartProgress::StartProgress(Options options) : options_(std::move(options)) {}

void StartProgress::Begin(absl::string_view what) {
  what_ = std::string(what);
  loaded_.clear();
  next_print_ = options_.clock->Now();
  if (options_.show) options_.show(what_);
}

void StartProgress::OnLoad(pid_t service, LoadedBytes bytes) {
  if (what_.empty()) return;
  loaded_[service] = bytes;
  double loaded = 0.0, total = 0.0;
  for (const auto& [_, of_service] : loaded_) {
    loaded += static_cast<double>(of_service.loaded);
    total += static_cast<double>(of_service.total);
  }
  const int64_t percent =
      total > 0.0 ? static_cast<int64_t>(100.0 * loaded / total) : 0;
  const std::string line =
      absl::StrCat(what_, ": ", percent, " % of the weights loaded");
  if (options_.show) {
    options_.show(line);
  } else if (options_.clock->Now() >= next_print_) {
    next_print_ = options_.clock->Now() + kInterval;
    options_.print(absl::StrCat("expertmesh: ", line));
  }
}

void StartProgress::End() {
  what_.clear();
  if (options_.show) options_.show("");
}

}  // namespace expertmesh
