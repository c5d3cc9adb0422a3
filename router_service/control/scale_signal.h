#pragma once

// How many replicas a pool should have. Autoscalers own replica counts; this
// tells them what the mesh needs.

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "services/core/clock.h"

namespace expertmesh::router {

struct ScaleOptions {
  double target_utilisation = 0.7;  // share of time a replica should be busy
  // A ratio of utilisation to target within 1 ± this changes nothing.
  double tolerance = 0.1;
  // A pool shrinks to the most that was desired within this time.
  absl::Duration scale_down_window = absl::Minutes(5);
};

// One pool, as measured over a window.
struct PoolObservation {
  std::string pool;
  int replicas = 0;           // that serve now
  int draining_replicas = 0;  // finish what they have
  int unseen_replicas = 0;    // are to be there, and are not heard of
  int min_replicas = 1;
  int max_replicas = 1;  // ≥ min_replicas
  // Rows per second that the services heard of were asked for, before capacity,
  // and those that they served.
  double demand_rows_per_second = 0;
  double served_rows_per_second = 0;
  double busy_share = 0;  // of time, mean over replicas
};

struct ScaleRecommendation {
  double demand_rows_per_second = 0;
  // Busy share, times demand over served rows where demand is higher: a pool
  // that turns rows away is short of more than its busy share can show.
  double utilisation = 0;
  int current_replicas = 0;
  int desired_replicas = 0;
  std::string reason;  // for operators
};

// Remembers what was desired, by pool. One thread.
class ScaleSignal {
 public:
  // `clock` must outlive this.
  ScaleSignal(const ScaleOptions& options, const Clock* clock);

  // desired = ceil(replicas · utilisation ÷ target), within tolerance, scale
  // down window and bounds. It never falls because replicas are lost from
  // sight: what those do is not known, so a pool that may shrink keeps as many
  // beside what the others need. Replicas that have come, heard of or not,
  // count as desired when they came: nobody knows yet what they are needed for.
  // Figures that are negative or not finite count as 0.
  ScaleRecommendation Recommend(const PoolObservation& observation);

 private:
  struct History {
    // (time, replicas desired then), oldest first.
    std::deque<std::pair<absl::Duration, int>> desired;
    int replicas = 0;  // last observed, in whatever state
  };

  // The most desired within the scale-down window, `desired` included.
  int Stabilise(int desired, History* history);

  const ScaleOptions options_;
  const Clock* const clock_;
  std::map<std::string, History> histories_;
};

}  // namespace expertmesh::router
