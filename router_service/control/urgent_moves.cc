#include "router_service/control/urgent_moves.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

bool Holds(const std::vector<SlotId>& slots, SlotId slot) {
  return std::binary_search(slots.begin(), slots.end(), slot);
}

// Contents of hosts on their way to covering everything.
class Cover {
 public:
  Cover(const PlacementProblem& problem, const HostedSlots& planned)
      : problem_(problem),
        planned_(planned),
        hosted_(CurrentContents(problem)),
        holders_(problem.num_slots()) {
    for (const std::vector<SlotId>& slots : hosted_) {
      for (const SlotId slot : slots) ++holders_[problem.IndexOf(slot)];
    }
  }

  HostedSlots Make() && {
    for (size_t host = 0; host < hosted_.size(); ++host) AddUncovered(host);
    for (size_t host = 0; host < hosted_.size(); ++host) MakeRoom(host);
    return std::move(hosted_);
  }

 private:
  void AddUncovered(size_t host) {
    std::vector<SlotId>& slots = hosted_[host];
    for (const SlotId slot : planned_[host]) {
      int& holders = holders_[problem_.IndexOf(slot)];
      if (holders > 0) continue;
      ++holders;
      slots.insert(std::lower_bound(slots.begin(), slots.end(), slot), slot);
    }
  }

  void MakeRoom(size_t host) {
    const PlacementHost& properties = problem_.hosts[host];
    if (!properties.managed) return;
    std::vector<SlotId>& slots = hosted_[host];
    int64_t excess = -properties.budget_bytes;
    for (const SlotId slot : slots) excess += problem_.slot_bytes[slot.layer];
    std::erase_if(slots, [&](SlotId slot) {
      int& holders = holders_[problem_.IndexOf(slot)];
      if (excess <= 0 || holders < 2 || Holds(planned_[host], slot)) {
        return false;
      }
      --holders;
      excess -= problem_.slot_bytes[slot.layer];
      return true;
    });
  }

  const PlacementProblem& problem_;
  const HostedSlots& planned_;
  HostedSlots hosted_;
  std::vector<int> holders_;  // [num_slots] hosts
};

}  // namespace

absl::StatusOr<std::vector<PlacementMove>> UrgentMoves(
    const PlacementProblem& problem, const HostedSlots& planned) {
  ASSIGN_OR_RETURN(MoveSequence sequence,
                   PlanMoves(problem, Cover(problem, planned).Make()));
  return std::move(sequence.moves);
}

}  // namespace expertmesh::router
