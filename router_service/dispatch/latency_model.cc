#include "router_service/dispatch/latency_model.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

// What an observation still counts once the next one came: the last 20 or so
// decide, so that a host that changes its speed has its share that soon.
constexpr double kForget = 0.95;
constexpr double kLeastPerRow = 1e-9;
// One that took longer, over its prediction, counts as this: a hiccup of a busy
// machine, which may be a hundred times the prediction, is no speed.
constexpr double kOutlier = 4;

}  // namespace

void LatencyModel::Observe(const Observation& observation) {
  const auto rows = static_cast<double>(std::max<int64_t>(1, observation.rows));
  const double rows_ahead =
      std::max(rows, static_cast<double>(observation.rows_ahead));
  double taken = absl::ToDoubleSeconds(observation.taken);
  if (is_settled()) {
    taken = std::min(taken, kOutlier * (fixed_ + per_row_ * rows_ahead));
  }
  double computed = absl::ToDoubleSeconds(observation.computed);
  if (computed <= 0) computed = 0.5 * taken * rows / rows_ahead;
  if (is_settled()) computed = std::min(computed, kOutlier * per_row_ * rows);
  ++num_observations_;
  n_ = n_ * kForget + 1;
  rows_ = rows_ * kForget + rows;
  rows_ahead_ = rows_ahead_ * kForget + rows_ahead;
  taken_ = taken_ * kForget + taken;
  computed_ = computed_ * kForget + computed;
  // Together they meet the mean, and neither is negative.
  per_row_ = std::clamp(computed_ / rows_, kLeastPerRow,
                        std::max(kLeastPerRow, taken_ / rows_ahead_));
  fixed_ = std::max(0.0, (taken_ - per_row_ * rows_ahead_) / n_);
}

}  // namespace expertmesh::router
