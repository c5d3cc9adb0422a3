#include "router_service/control/scale_signal.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace expertmesh::router {
namespace {

// More than any pool has, and well within an int.
constexpr double kMostReplicas = 1e9;

double Sane(double value) {
  return std::isfinite(value) && value > 0 ? value : 0;
}

double Utilisation(const PoolObservation& observation) {
  const double demand = Sane(observation.demand_rows_per_second);
  const double served = Sane(observation.served_rows_per_second);
  const double shortage = served > 0 ? std::max(demand / served, 1.0) : 1;
  return Sane(observation.busy_share) * shortage;
}

// Replicas for `utilisation`, before bounds and history.
int Need(const PoolObservation& observation, double utilisation,
         const ScaleOptions& options) {
  const double ratio = utilisation / options.target_utilisation;
  if (std::abs(ratio - 1) <= options.tolerance) return observation.replicas;
  // A hair above a whole number is rounding, not need.
  const double need = std::ceil(observation.replicas * ratio - 1e-9);
  return static_cast<int>(std::min(need, kMostReplicas));
}

}  // namespace

ScaleSignal::ScaleSignal(const ScaleOptions& options, const Clock* clock)
    : options_(options), clock_(clock) {}

int ScaleSignal::Stabilise(int desired, History* history) {
  const absl::Duration now = clock_->Now();
  auto& entries = history->desired;
  while (!entries.empty() &&
         entries.front().first + options_.scale_down_window <= now) {
    entries.pop_front();
  }
  // What was desired earlier and is not more can never be the most again.
  while (!entries.empty() && entries.back().second <= desired) {
    entries.pop_back();
  }
  entries.push_back({now, desired});
  return entries.front().second;
}

ScaleRecommendation ScaleSignal::Recommend(const PoolObservation& observation) {
  const int current = observation.replicas;
  ScaleRecommendation result;
  result.demand_rows_per_second = Sane(observation.demand_rows_per_second);
  result.utilisation = Utilisation(observation);
  result.current_replicas = current;

  const int unseen = observation.unseen_replicas;
  const int known = current + observation.draining_replicas + unseen;
  const int seen_need = Need(observation, result.utilisation, options_);
  const int need = std::max(seen_need, std::min(seen_need + unseen, known));
  History& history = histories_[observation.pool];
  if (known > history.replicas) Stabilise(known, &history);
  history.replicas = known;
  const int held = Stabilise(need, &history);
  // History only slows shrinking; it never makes a pool grow.
  const int steady = std::max(need, std::min(held, known));
  result.desired_replicas =
      std::clamp(steady, observation.min_replicas,
                 std::max(observation.min_replicas, observation.max_replicas));

  result.reason = absl::StrFormat(
      "demand %.0f rows/s; utilisation %.2f over target %.2f with %d replicas "
      "needs %d",
      result.demand_rows_per_second, result.utilisation,
      options_.target_utilisation, current, seen_need);
  if (current > 0 && seen_need == current) {
    absl::StrAppend(&result.reason, " (within tolerance or rounding)");
  }
  if (need != seen_need) {
    absl::StrAppend(&result.reason, "; ", need - seen_need,
                    " out of sight left alone");
  }
  if (steady != need) {
    absl::StrAppend(&result.reason, "; kept at ", steady,
                    ", the most needed in the last ",
                    absl::FormatDuration(options_.scale_down_window));
  }
  if (result.desired_replicas > steady) {
    absl::StrAppend(&result.reason, "; never less than ",
                    observation.min_replicas);
  } else if (result.desired_replicas < steady) {
    absl::StrAppend(&result.reason, "; never more than ",
                    observation.max_replicas);
  }
  return result;
}

}  // namespace expertmesh::router
