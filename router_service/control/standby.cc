#include "router_service/control/standby.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "router_service/control/evacuation.h"

namespace expertmesh::router {
namespace {

bool AnyStandsBy(const PlacementProblem& problem) {
  return std::any_of(problem.hosts.begin(), problem.hosts.end(),
                     [](const PlacementHost& host) { return host.stands_by; });
}

// A problem of fewer hosts, and which ones of the whole they are.
struct PartOfMesh {
  PlacementProblem problem;
  std::vector<int> hosts;
};

// Without hosts that stand by, but for what they alone hold.
PartOfMesh WithoutStandby(const PlacementProblem& whole) {
  std::vector<uint8_t> is_held(whole.num_slots(), 0);
  for (const PlacementHost& host : whole.hosts) {
    if (host.stands_by) continue;
    for (const SlotId slot : host.hosted) is_held[whole.IndexOf(slot)] = 1;
  }
  PartOfMesh part;
  part.problem = whole;
  part.problem.hosts.clear();
  for (size_t h = 0; h < whole.hosts.size(); ++h) {
    PlacementHost host = whole.hosts[h];
    if (host.stands_by) {
      host.managed = false;
      std::erase_if(host.hosted, [&](SlotId slot) {
        return is_held[whole.IndexOf(slot)] != 0;
      });
      if (host.hosted.empty()) continue;
    }
    part.problem.hosts.push_back(std::move(host));
    part.hosts.push_back(static_cast<int>(h));
  }
  return part;
}

// A plan for a part of the mesh as one of the whole.
PlacementPlan OfWhole(const PlacementProblem& whole, const PartOfMesh& part,
                      PlacementPlan plan) {
  HostedSlots hosted = CurrentContents(whole);
  for (size_t h = 0; h < part.hosts.size(); ++h) {
    if (whole.hosts[part.hosts[h]].stands_by) continue;
    hosted[part.hosts[h]] = std::move(plan.hosted[h]);
  }
  plan.hosted = std::move(hosted);
  for (PlacementMove& move : plan.moves) move.host = part.hosts[move.host];
  return plan;
}

}  // namespace

absl::StatusOr<PlacementPlan> PlanAroundStandby(const PlacementProblem& problem,
                                                const PlannerOptions& options) {
  // Also where it is not valid, of which WithoutStandby thinks nothing.
  if (!AnyStandsBy(problem) || !ValidateProblem(problem).ok()) {
    return PlanPlacement(problem, options);
  }
  const PartOfMesh part = WithoutStandby(problem);
  absl::StatusOr<PlacementPlan> plan = PlanPlacement(part.problem, options);
  if (!plan.ok()) return PlanPlacement(problem, options);
  return OfWhole(problem, part, *std::move(plan));
}

absl::StatusOr<MoveSequence> EvacuateAroundStandby(
    const PlacementProblem& problem, int host) {
  if (!AnyStandsBy(problem)) return PlanEvacuation(problem, host);
  PlacementProblem fixed = problem;
  for (PlacementHost& other : fixed.hosts) {
    if (other.stands_by) other.managed = false;
  }
  absl::StatusOr<MoveSequence> sequence = PlanEvacuation(fixed, host);
  return sequence.ok() ? std::move(sequence) : PlanEvacuation(problem, host);
}

}  // namespace expertmesh::router
