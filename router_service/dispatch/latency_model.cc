#include "router_service/dispatch/latency_model.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

// What an observation still counts once the next one came: the last 20 or so
// decide, so that a host that changes its speed has its share that soon.
constexpr double kForget = 0.95;
constexpr double kLeastPerRow = 1e-9;
// Rows must vary by this much of their mean before their slope is believed.
constexpr double kEnoughSpread = 0.05;

}  // namespace

void LatencyModel::Observe(int64_t rows, absl::Duration taken) {
  const double x = static_cast<double>(std::max<int64_t>(1, rows));
  const double y = absl::ToDoubleSeconds(taken);
  ++num_observations_;
  n_ = n_ * kForget + 1;
  x_ = x_ * kForget + x;
  y_ = y_ * kForget + y;
  xx_ = xx_ * kForget + x * x;
  xy_ = xy_ * kForget + x * y;
  const double mean_x = x_ / n_;
  const double mean_y = y_ / n_;
  const double variance = xx_ / n_ - mean_x * mean_x;
  // Batches of one size tell a sum, not its parts: half is put down to rows.
  double slope = 0.5 * mean_y / mean_x;
  if (variance > kEnoughSpread * mean_x * mean_x) {
    slope = (xy_ / n_ - mean_x * mean_y) / variance;
  }
  // Neither part is negative, and together they meet the mean.
  per_row_ =
      std::clamp(slope, kLeastPerRow, std::max(kLeastPerRow, mean_y / mean_x));
  fixed_ = std::max(0.0, mean_y - per_row_ * mean_x);
}

}  // namespace expertmesh::router
