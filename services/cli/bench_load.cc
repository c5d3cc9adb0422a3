#include "services/cli/bench_load.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "services/cli/length_distribution.h"

namespace expertmesh {

std::string LoadLevel::Name() const {
  if (concurrency) return absl::StrCat("concurrency ", *concurrency);
  if (std::isinf(*request_rate)) return "all requests at once";
  return absl::StrCat(*request_rate, " requests/s");
}

LoadSchedule::LoadSchedule(const LoadLevel& level, uint64_t seed)
    : level_(level), random_(seed) {
  if (level_.request_rate) PlanArrival();
  for (uint32_t i = 0; i < level_.concurrency.value_or(0); ++i) {
    planned_.push(absl::ZeroDuration());
  }
}

std::optional<absl::Duration> LoadSchedule::Next() const {
  if (planned_.empty() || sent_ >= level_.max_requests.value_or(UINT64_MAX) ||
      planned_.top() >= level_.duration.value_or(absl::InfiniteDuration())) {
    return std::nullopt;
  }
  return planned_.top();
}

void LoadSchedule::Sent() {
  ++sent_;
  planned_.pop();
  if (level_.request_rate) PlanArrival();
}

void LoadSchedule::Ended(absl::Duration now, bool ok) {
  if (level_.concurrency) planned_.push(ok ? now : now + kPause);
}

void LoadSchedule::PlanArrival() {
  // Times between arrivals of a Poisson process are exponential.
  arrival_ +=
      absl::Seconds(-std::log(UnitNumber(random_)) / *level_.request_rate);
  planned_.push(arrival_);
}

}  // namespace expertmesh
