#include "router_service/control/evacuation.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

class Evacuation {
 public:
  Evacuation(const PlacementProblem& problem, int leaving)
      : problem_(problem),
        leaving_(leaving),
        hosted_(CurrentContents(problem)),
        copies_(problem.num_slots()),
        free_bytes_(problem.hosts.size()) {
    for (int host = 0; host < num_hosts(); ++host) {
      free_bytes_[host] = problem.hosts[host].budget_bytes;
      for (const SlotId slot : hosted_[host]) {
        free_bytes_[host] -= Bytes(slot);
        if (host != leaving_) ++Copies(slot);
      }
    }
  }

  absl::StatusOr<HostedSlots> Run() {
    std::vector<SlotId> alone;
    for (const SlotId slot : hosted_[leaving_]) {
      if (Copies(slot) == 0) alone.push_back(slot);
    }
    std::stable_sort(alone.begin(), alone.end(),
                     [this](SlotId a, SlotId b) { return Rows(a) > Rows(b); });
    for (size_t i = 0; i < alone.size(); ++i) {
      if (Place(alone[i])) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "no other service has room for expert ", alone[i].expert,
          " of layer ", alone[i].layer, ", which ", problem_.hosts[leaving_].id,
          " alone holds, nor for ", alone.size() - i - 1, " more"));
    }
    return std::move(hosted_);
  }

 private:
  int num_hosts() const { return static_cast<int>(problem_.hosts.size()); }
  int64_t Bytes(SlotId slot) const { return problem_.slot_bytes[slot.layer]; }
  double Rows(SlotId slot) const {
    return problem_.rows[problem_.IndexOf(slot)];
  }
  // Of hosts that stay.
  int& Copies(SlotId slot) { return copies_[problem_.IndexOf(slot)]; }
  bool MayChange(int host) const {
    return host != leaving_ && problem_.hosts[host].managed;
  }

  // What the host has to do in a layer, in its own time.
  double Busy(int host, int layer) {
    double rows = 0;
    for (const SlotId slot : hosted_[host]) {
      if (slot.layer == layer) rows += Rows(slot) / std::max(Copies(slot), 1);
    }
    return rows / problem_.hosts[host].rate();
  }

  bool Place(SlotId slot) {
    int best = -1;
    double least = 0;
    for (int host = 0; host < num_hosts(); ++host) {
      if (!MayChange(host) || free_bytes_[host] < Bytes(slot)) continue;
      const double busy = Busy(host, slot.layer);
      if (best >= 0 && busy >= least) continue;
      best = host;
      least = busy;
    }
    if (best < 0) best = GiveWay(Bytes(slot));
    if (best < 0) return false;
    std::vector<SlotId>& held = hosted_[best];
    held.insert(std::lower_bound(held.begin(), held.end(), slot), slot);
    ++Copies(slot);
    free_bytes_[best] -= Bytes(slot);
    return true;
  }

  // Takes away the spare copy that is missed least; returns where, or -1.
  int GiveWay(int64_t bytes) {
    int best = -1;
    SlotId victim;
    double least = 0;
    for (int host = 0; host < num_hosts(); ++host) {
      if (!MayChange(host)) continue;
      for (const SlotId slot : hosted_[host]) {
        if (Copies(slot) < 2 || free_bytes_[host] + Bytes(slot) < bytes) {
          continue;
        }
        const double rows = Rows(slot) / Copies(slot);
        if (best >= 0 && rows >= least) continue;
        best = host;
        victim = slot;
        least = rows;
      }
    }
    if (best < 0) return best;
    std::erase(hosted_[best], victim);
    --Copies(victim);
    free_bytes_[best] += Bytes(victim);
    return best;
  }

  const PlacementProblem& problem_;
  const int leaving_;
  HostedSlots hosted_;               // ascending
  std::vector<int> copies_;          // [num_slots] on hosts that stay
  std::vector<int64_t> free_bytes_;  // [num_hosts]
};

}  // namespace

absl::StatusOr<MoveSequence> PlanEvacuation(const PlacementProblem& problem,
                                            int host) {
  PlacementProblem staying = problem;
  staying.hosts[host].managed = false;  // keeps what it holds until it is gone
  ASSIGN_OR_RETURN(const HostedSlots target, Evacuation(staying, host).Run());
  ASSIGN_OR_RETURN(MoveSequence sequence, PlanMoves(staying, target));
  if (sequence.reached == target) return sequence;
  return absl::FailedPreconditionError(
      absl::StrCat("hosts are too full to take what ", problem.hosts[host].id,
                   " alone holds; leave room for one expert more"));
}

}  // namespace expertmesh::router
