#include "router_service/dispatch/lost_mass_budget.h"

#include <algorithm>
#include <cmath>

namespace expertmesh::router {

LossAllowance LostMassBudget::Allowance(absl::Duration now) {
  if (max_lost_ >= 1) return {};
  if (max_lost_ <= 0) return {.mass = 0};
  MoveOn(now);
  const double lost = total_.original - total_.kept;
  return {.mass = max_lost_ * total_.original - lost, .share = max_lost_};
}

void LostMassBudget::Add(absl::Span<const RoutingAccount> accounts,
                         absl::Duration now) {
  MoveOn(now);
  Second sum;
  for (const RoutingAccount& account : accounts) {
    if (!std::isfinite(account.kept_mass + account.original_mass)) continue;
    sum.kept += account.kept_mass;
    sum.original += account.original_mass;
  }
  for (Second* second : {&seconds_[now_ % kWindowSeconds], &total_}) {
    second->kept += sum.kept;
    second->original += sum.original;
  }
}

void LostMassBudget::MoveOn(absl::Duration now) {
  const int64_t second = absl::ToInt64Seconds(now);
  if (second <= now_) return;
  const int64_t passed = std::min<int64_t>(second - now_, kWindowSeconds);
  for (int64_t i = 1; i <= passed; ++i) {
    seconds_[(now_ + i) % kWindowSeconds] = Second();
  }
  now_ = second;
  // Summed anew: differences of sums would drift.
  total_ = Second();
  for (const Second& other : seconds_) {
    total_.kept += other.kept;
    total_.original += other.original;
  }
}

}  // namespace expertmesh::router
