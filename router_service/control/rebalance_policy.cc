#include "router_service/control/rebalance_policy.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace expertmesh::router {
namespace {

int64_t LoadedBytes(absl::Span<const PlacementMove> moves) {
  int64_t bytes = 0;
  for (const PlacementMove& move : moves) {
    if (move.kind == PlacementMove::Kind::kLoad) bytes += move.bytes;
  }
  return bytes;
}

std::string Percent(double share) {
  return absl::StrFormat("%.1f%%", 100 * share);
}

}  // namespace

std::vector<PlacementMove> AffordablePrefix(
    absl::Span<const PlacementMove> moves, int64_t bytes) {
  if (LoadedBytes(moves) <= bytes) return {moves.begin(), moves.end()};
  size_t end = 0;  // one past the last affordable load
  int64_t loaded = 0;
  for (size_t i = 0; i < moves.size(); ++i) {
    if (moves[i].kind != PlacementMove::Kind::kLoad) continue;
    loaded += moves[i].bytes;
    if (loaded > bytes) break;
    end = i + 1;
  }
  return {moves.begin(), moves.begin() + end};
}

RebalancePolicy::RebalancePolicy(const RebalanceOptions& options,
                                 const Clock* clock)
    : options_(options),
      clock_(clock),
      retry_delay_(options.urgent_after),
      bytes_(static_cast<double>(options.bytes_per_minute)),
      last_refill_(clock->Now()) {}

RebalanceDecision RebalancePolicy::Consider(const PlacementPlan& plan) {
  Refill();
  urgent_since_ = absl::InfiniteDuration();
  const double improvement =
      1 - plan.after.slowest_over_mean / plan.before.slowest_over_mean;
  RebalanceDecision decision;
  if (plan.moves.empty() || improvement < options_.min_improvement) {
    if (is_under_way_) last_end_ = clock_->Now();
    is_under_way_ = false;
    windows_ = 0;
    decision.reason =
        absl::StrCat("nothing to gain: the slowest host's load would fall by ",
                     Percent(improvement), ", less than ",
                     Percent(options_.min_improvement));
    return decision;
  }
  windows_ = std::min(windows_ + 1, options_.min_windows);
  if (!is_under_way_ && windows_ < options_.min_windows) {
    decision.reason =
        absl::StrCat("window ", windows_, " of ", options_.min_windows,
                     " in which the slowest host's load could fall by ",
                     Percent(improvement));
    return decision;
  }
  const absl::Duration pause = clock_->Now() - last_end_;
  if (!is_under_way_ && pause < options_.min_pause) {
    decision.reason = absl::StrCat(
        "the last rebalance ended ",
        absl::FormatDuration(absl::Trunc(pause, absl::Seconds(1))), " ago");
    return decision;
  }
  decision.moves = Afford(plan.moves);
  if (decision.moves.empty()) {
    decision.reason = "the byte budget is spent";
    return decision;
  }
  is_under_way_ = decision.moves.size() < plan.moves.size();
  decision.reason = absl::StrCat(
      "the slowest host's load falls by ", Percent(improvement), " with ",
      plan.moves.size(), " moves", is_under_way_ ? ", of which now " : "",
      is_under_way_ ? absl::StrCat(decision.moves.size()) : "");
  return decision;
}

RebalanceDecision RebalancePolicy::ConsiderUrgent(
    std::vector<PlacementMove> moves, absl::string_view why) {
  Refill();
  windows_ = 0;
  const absl::Duration now = clock_->Now();
  urgent_since_ = std::min(urgent_since_, now);
  const absl::Duration due =
      std::max(urgent_since_ + options_.urgent_after, retry_at_);
  RebalanceDecision decision;
  if (now < due) {
    decision.reason = absl::StrCat(why, "; it may be back soon by itself");
    decision.look_again = due - now;
    return decision;
  }
  decision.reason = std::string(why);
  bytes_ -= static_cast<double>(LoadedBytes(moves));
  decision.moves = std::move(moves);
  return decision;
}

void RebalancePolicy::Ended(bool ok) {
  const absl::Duration now = clock_->Now();
  if (ok) {
    retry_delay_ = options_.urgent_after;
  } else {
    is_under_way_ = false;
    retry_at_ = now + retry_delay_;
    retry_delay_ = std::min(
        2 * retry_delay_, std::max(options_.min_pause, options_.urgent_after));
  }
  const bool was_urgent =
      std::exchange(urgent_since_, absl::InfiniteDuration()) <= now;
  if (is_under_way_ || was_urgent) return;
  last_end_ = now;
  windows_ = 0;
}

void RebalancePolicy::Refill() {
  const absl::Duration now = clock_->Now();
  const double budget = static_cast<double>(options_.bytes_per_minute);
  bytes_ =
      std::min(budget, bytes_ + budget * absl::FDivDuration(now - last_refill_,
                                                            absl::Minutes(1)));
  last_refill_ = now;
}

std::vector<PlacementMove> RebalancePolicy::Afford(
    const std::vector<PlacementMove>& moves) {
  if (options_.bytes_per_minute == 0) return moves;
  std::vector<PlacementMove> affordable =
      AffordablePrefix(moves, static_cast<int64_t>(std::max(bytes_, 0.0)));
  // A slot larger than the budget of a minute goes when all of it is there, on
  // credit; it would never go otherwise.
  const bool is_full = bytes_ >= static_cast<double>(options_.bytes_per_minute);
  if (LoadedBytes(affordable) == 0 && LoadedBytes(moves) > 0 && is_full) {
    const auto load =
        std::find_if(moves.begin(), moves.end(), [](const PlacementMove& move) {
          return move.kind == PlacementMove::Kind::kLoad;
        });
    affordable.assign(moves.begin(), load + 1);
  }
  bytes_ -= static_cast<double>(LoadedBytes(affordable));
  return affordable;
}

}  // namespace expertmesh::router
