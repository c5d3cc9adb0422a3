#include "router_service/control/rebalance_policy.h"

#include <algorithm>

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
      bytes_(static_cast<double>(options.bytes_per_minute)),
      last_refill_(clock->Now()) {}

RebalanceDecision RebalancePolicy::Consider(const PlacementPlan& plan) {
  Refill();
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
  decision.is_cut = decision.moves.size() < plan.moves.size();
  if (decision.moves.empty()) {
    decision.reason = "the byte budget is spent";
    return decision;
  }
  is_under_way_ = decision.is_cut;
  if (!decision.is_cut) {
    last_end_ = clock_->Now();
    windows_ = 0;
  }
  decision.reason = absl::StrCat(
      "the slowest host's load falls by ", Percent(improvement), " with ",
      plan.moves.size(), " moves", decision.is_cut ? ", of which now " : "",
      decision.is_cut ? absl::StrCat(decision.moves.size()) : "");
  return decision;
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
