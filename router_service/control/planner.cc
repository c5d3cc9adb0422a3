#include "router_service/control/planner.h"

#include <algorithm>
#include <utility>

#include "router_service/control/placement_packing.h"
#include "router_service/control/placement_refinement.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

// From keeping whatever can stay to starting from nothing, in two ways.
constexpr PackingOptions kPackings[] = {
    {.keep_limit = 1e9, .copy_bonus = 0.5, .even_layers = false},
    {.keep_limit = 1.05, .copy_bonus = 0.1, .even_layers = false},
    {.keep_limit = 0, .copy_bonus = 0, .even_layers = false},
    {.keep_limit = 0, .copy_bonus = 0, .even_layers = true},
};

int64_t ModelBytes(const PlacementProblem& problem) {
  int64_t bytes = 0;
  for (const int64_t layer : problem.slot_bytes) {
    bytes += layer * problem.num_experts;
  }
  return bytes;
}

bool HoldsAnythingManaged(const PlacementProblem& problem) {
  return std::any_of(problem.hosts.begin(), problem.hosts.end(),
                     [](const PlacementHost& host) {
                       return host.managed && !host.hosted.empty();
                     });
}

int64_t BytesToLoad(const PlacementProblem& problem, const HostedSlots& from,
                    const HostedSlots& to) {
  int64_t bytes = 0;
  for (size_t host = 0; host < to.size(); ++host) {
    for (const SlotId slot : to[host]) {
      if (!std::binary_search(from[host].begin(), from[host].end(), slot)) {
        bytes += problem.slot_bytes[slot.layer];
      }
    }
  }
  return bytes;
}

class Planner {
 public:
  Planner(const PlacementProblem& problem, const PlannerOptions& options)
      : problem_(problem),
        current_(CurrentContents(problem)),
        penalty_per_byte_(
            options.move_penalty /
            static_cast<double>(std::max<int64_t>(ModelBytes(problem), 1))) {}

  absl::StatusOr<PlacementPlan> Plan() {
    RETURN_IF_ERROR(Propose());
    // The first for which there is a way; nearly always there is.
    std::stable_sort(
        proposals_.begin(), proposals_.end(),
        [](const Proposal& a, const Proposal& b) { return a.cost < b.cost; });
    absl::Status status;
    for (Proposal& proposal : proposals_) {
      absl::StatusOr<MoveSequence> sequence =
          PlanMoves(problem_, proposal.hosted);
      if (sequence.ok()) return MakePlan(*std::move(sequence));
      status.Update(sequence.status());
    }
    return status;
  }

 private:
  struct Proposal {
    HostedSlots hosted;
    double cost;
  };

  absl::Status Propose() {
    if (CheckPlacement(problem_, current_).ok()) AddProposal(current_);
    absl::Status status;
    for (const PackingOptions& packing : kPackings) {
      if (packing.keep_limit > 0 && !HoldsAnythingManaged(problem_)) {
        continue;
      }
      absl::StatusOr<PlacementState> state = PackPlacement(problem_, packing);
      if (!state.ok()) {
        status.Update(state.status());
        continue;
      }
      RefinePlacement(RowsPerByte(*state), &*state);
      AddProposal(state->Hosted());
    }
    return proposals_.empty() ? status : absl::OkStatus();
  }

  void AddProposal(HostedSlots hosted) {
    const double cost = EvaluatePlacement(problem_, hosted).slowest_over_mean +
                        penalty_per_byte_ * static_cast<double>(BytesToLoad(
                                                problem_, current_, hosted));
    proposals_.push_back({std::move(hosted), cost});
  }

  // The penalty in the rows of which `slowest_over_mean` is a ratio.
  double RowsPerByte(const PlacementState& state) const {
    double rows = 0;
    for (int64_t layer = 0; layer < problem_.num_layers; ++layer) {
      rows += state.ideal(layer);
    }
    return penalty_per_byte_ * rows;
  }

  PlacementPlan MakePlan(MoveSequence sequence) const {
    PlacementPlan plan;
    plan.before = EvaluatePlacement(problem_, current_);
    plan.after = EvaluatePlacement(problem_, sequence.reached);
    plan.hosted = std::move(sequence.reached);
    plan.bytes_to_load = sequence.bytes_to_load;
    plan.moves = std::move(sequence.moves);
    return plan;
  }

  const PlacementProblem& problem_;
  const HostedSlots current_;
  const double penalty_per_byte_;
  std::vector<Proposal> proposals_;
};

}  // namespace

absl::StatusOr<PlacementPlan> PlanPlacement(const PlacementProblem& problem,
                                            const PlannerOptions& options) {
  RETURN_IF_ERROR(ValidateProblem(problem));
  return Planner(problem, options).Plan();
}

}  // namespace expertmesh::router
