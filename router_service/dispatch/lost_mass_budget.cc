#include "router_service/dispatch/lost_mass_budget.h"

#include <algorithm>

namespace expertmesh::router {

bool LostMassBudget::IsSpent(absl::Duration now) {
  if (max_lost_ >= 1) return false;
  MoveOn(now);
  // While nothing is known, a budget above zero may be used.
  return max_lost_ <= 0 ||
         total_.original - total_.kept > max_lost_ * total_.original;
}

void LostMassBudget::Add(const RoutingAccount& account, absl::Duration now) {
  MoveOn(now);
  Second& second = seconds_[now_ % kWindowSeconds];
  second.kept += account.kept_mass;
  second.original += account.original_mass;
  total_.kept += account.kept_mass;
  total_.original += account.original_mass;
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
