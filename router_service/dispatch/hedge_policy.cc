#include "router_service/dispatch/hedge_policy.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

constexpr size_t kWindow = 512;  // batches
constexpr double kQuantile = 0.99;
constexpr double kMostSaved = 8;
// Below it, noise of threads and timers is larger than what a hedge could win.
constexpr absl::Duration kLeastDelay = absl::Milliseconds(2);

}  // namespace

void HedgePolicy::Observe(absl::Duration predicted, absl::Duration taken) {
  if (budget_ == 0) return;
  ratios_.push_back(static_cast<float>(
      taken / std::max(predicted, absl::Duration(absl::Microseconds(1)))));
  if (ratios_.size() < kWindow) return;
  const auto high =
      ratios_.begin() + static_cast<ptrdiff_t>(kQuantile * kWindow);
  std::nth_element(ratios_.begin(), high, ratios_.end());
  high_quantile_ = std::max(1.0, static_cast<double>(*high));
  ratios_.clear();
}

absl::Duration HedgePolicy::Delay(absl::Duration predicted) const {
  if (budget_ == 0) return absl::InfiniteDuration();
  return std::max(kLeastDelay, predicted * high_quantile_);
}

void HedgePolicy::OnSend() { saved_ = std::min(kMostSaved, saved_ + budget_); }

}  // namespace expertmesh::router
