#pragma once

// When a better placement is worth moving weights for, and how fast.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "router_service/control/move_sequence.h"
#include "router_service/control/planner.h"
#include "services/core/clock.h"

namespace expertmesh::router {

struct RebalanceOptions {
  // Least relative fall of `slowest_over_mean`.
  double min_improvement = 0.10;
  int min_windows = 3;  // consecutive ones that must show it
  absl::Duration min_pause = absl::Seconds(60);  // between two rebalances
  // Weights loaded per minute at most, on average; 0: not limited. What was not
  // used is saved up for one minute.
  int64_t bytes_per_minute = 0;
  // How long an expert has no host before a copy is loaded elsewhere: a service
  // that restarts, or is late at the start, brings it back by itself.
  absl::Duration urgent_after = absl::Seconds(5);
};

struct RebalanceDecision {
  // Moves to make now: the plan's first ones, as many as the byte budget has
  // room for. Empty: none.
  std::vector<PlacementMove> moves;
  std::string reason;  // for operators, in either case
  // When to judge again at the latest, from now, if the window takes longer.
  absl::Duration look_again = absl::InfiniteDuration();
};

// The automatic rebalancer's judgement. One thread.
class RebalancePolicy {
 public:
  // `clock` must outlive this.
  RebalancePolicy(const RebalanceOptions& options, const Clock* clock);

  // Judges the plan made at the end of a window; call once a window, while all
  // experts are covered. Whoever gets moves carries them out, in order, and
  // calls Ended before the next call of either. A rebalance that was cut short
  // goes on in the following windows, without waiting again, for as long as the
  // rest is worth min_improvement.
  RebalanceDecision Consider(const PlacementPlan& plan);

  // The same instead of it while the placement is not one that may be, for
  // `why`, which these moves mend. They wait until it was so for urgent_after,
  // or longer after each run that failed, but for no byte budget: that is
  // charged all the same, and others wait for it to recover.
  RebalanceDecision ConsiderUrgent(std::vector<PlacementMove> moves,
                                   absl::string_view why);

  // The run of the last moves given ended, as wanted or not. One that failed
  // ends its rebalance: the next begins with new windows, after the pause.
  void Ended(bool ok);

 private:
  void Refill();
  // As many of the first moves as may be made now, paid for.
  std::vector<PlacementMove> Afford(const std::vector<PlacementMove>& moves);

  const RebalanceOptions options_;
  const Clock* const clock_;
  int windows_ = 0;  // consecutive ones with an improvement
  bool is_under_way_ = false;
  absl::Duration last_end_ = -absl::InfiniteDuration();
  // While something is urgent: since when, and not before when.
  absl::Duration urgent_since_ = absl::InfiniteDuration();
  absl::Duration retry_at_ = -absl::InfiniteDuration();
  absl::Duration retry_delay_;
  double bytes_;  // that may be loaded now; below 0: in debt
  absl::Duration last_refill_;
};

// The longest prefix whose loads add up to `bytes` at most. What is unloaded
// only for a load that is cut off stays.
std::vector<PlacementMove> AffordablePrefix(
    absl::Span<const PlacementMove> moves, int64_t bytes);

}  // namespace expertmesh::router
