#include "router_service/control/move_sequence.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

class Sequencer {
 public:
  Sequencer(const PlacementProblem& problem, HostedSlots target)
      : problem_(problem),
        target_(std::move(target)),
        contents_(CurrentContents(problem)),
        copies_(problem.num_slots()),
        free_bytes_(problem.hosts.size()),
        unloads_(problem.hosts.size()) {
    for (size_t host = 0; host < contents_.size(); ++host) {
      free_bytes_[host] = problem.hosts[host].budget_bytes;
      for (const SlotId slot : contents_[host]) {
        ++copies_[problem.IndexOf(slot)];
        free_bytes_[host] -= problem.slot_bytes[slot.layer];
      }
    }
  }

  absl::StatusOr<MoveSequence> Run() {
    FindDifferences();
    LoadAll();
    while (!loads_.empty() && BreakDeadlock()) LoadAll();
    UnloadAll();
    for (size_t host = 0; host < contents_.size(); ++host) {
      if (problem_.hosts[host].managed && free_bytes_[host] < 0) {
        return absl::FailedPreconditionError(absl::StrCat(
            "host ", problem_.hosts[host].id,
            " exceeds its budget and no other has room while slots move"));
      }
    }
    result_.reached = std::move(contents_);
    return std::move(result_);
  }

 private:
  struct Copy {
    int host;
    SlotId slot;

    friend bool operator==(const Copy&, const Copy&) = default;
    friend auto operator<=>(const Copy&, const Copy&) = default;
  };

  int64_t Bytes(SlotId slot) const { return problem_.slot_bytes[slot.layer]; }
  int& Copies(SlotId slot) { return copies_[problem_.IndexOf(slot)]; }
  double Rows(SlotId slot) const {
    return problem_.rows[problem_.IndexOf(slot)];
  }
  bool Holds(int host, SlotId slot) const {
    return std::binary_search(contents_[host].begin(), contents_[host].end(),
                              slot);
  }

  void FindDifferences() {
    for (size_t h = 0; h < contents_.size(); ++h) {
      const int host = static_cast<int>(h);
      std::sort(target_[h].begin(), target_[h].end());
      for (const SlotId slot : target_[h]) {
        if (!Holds(host, slot)) loads_.push_back({host, slot});
      }
      std::set_difference(contents_[h].begin(), contents_[h].end(),
                          target_[h].begin(), target_[h].end(),
                          std::back_inserter(unloads_[h]));
    }
    std::sort(loads_.begin(), loads_.end(), [&](const Copy& a, const Copy& b) {
      return std::make_tuple(-Rows(a.slot), a.slot, a.host) <
             std::make_tuple(-Rows(b.slot), b.slot, b.host);
    });
  }

  // One load can make room for another: goes on until none does.
  void LoadAll() {
    bool has_progress = true;
    while (has_progress && !loads_.empty()) {
      std::vector<Copy> waiting;
      for (const Copy& load : loads_) {
        if (MakeRoom(load.host, Bytes(load.slot))) {
          Load(load);
        } else {
          waiting.push_back(load);
        }
      }
      has_progress = waiting.size() < loads_.size();
      loads_ = std::move(waiting);
    }
  }

  // Unloads what has to go anyway and is held elsewhere, if that is enough.
  bool MakeRoom(int host, int64_t bytes) {
    int64_t room = free_bytes_[host];
    std::vector<SlotId> leaving;
    for (const SlotId slot : unloads_[host]) {
      if (room >= bytes) break;
      if (Copies(slot) < 2) continue;
      leaving.push_back(slot);
      room += Bytes(slot);
    }
    if (room < bytes) return false;
    for (const SlotId slot : leaving) {
      std::erase(unloads_[host], slot);
      Unload({host, slot});
    }
    return true;
  }

  // Every waiting load is for a full host that can lose nothing: lets a copy
  // take or give room for the time. False where there is no way.
  bool BreakDeadlock() {
    for (size_t i = 0; i < loads_.size(); ++i) {
      const Copy load = loads_[i];
      if (!MoveAside(load.host) && !GiveWay(load)) continue;
      return true;
    }
    return false;
  }

  // A slot that leaves `host` waits on a third host that has room.
  bool MoveAside(int host) {
    for (const SlotId slot : unloads_[host]) {
      for (size_t h = 0; h < contents_.size(); ++h) {
        const int other = static_cast<int>(h);
        if (other == host || !problem_.hosts[h].managed) continue;
        if (free_bytes_[h] < Bytes(slot) || Holds(other, slot)) continue;
        // Unless it is to be loaded there, it goes again.
        if (std::erase(loads_, Copy{other, slot}) == 0) {
          unloads_[h].push_back(slot);
        }
        Load({other, slot});
        return true;
      }
    }
    return false;
  }

  // Another slot of the host leaves and comes back; at most once each.
  bool GiveWay(const Copy& load) {
    const std::vector<SlotId> contents = contents_[load.host];
    for (const SlotId slot : contents) {
      const Copy copy = {load.host, slot};
      if (Copies(slot) < 2 || Bytes(slot) < Bytes(load.slot)) continue;
      if (!std::binary_search(target_[load.host].begin(),
                              target_[load.host].end(), slot)) {
        continue;
      }
      if (!gave_way_.insert(copy).second) continue;
      Unload(copy);
      loads_.push_back(copy);
      return true;
    }
    return false;
  }

  void UnloadAll() {
    for (size_t host = 0; host < unloads_.size(); ++host) {
      for (const SlotId slot : unloads_[host]) {
        if (Copies(slot) >= 2) Unload({static_cast<int>(host), slot});
      }
    }
  }

  void Load(const Copy& copy) {
    std::vector<SlotId>& contents = contents_[copy.host];
    contents.insert(
        std::lower_bound(contents.begin(), contents.end(), copy.slot),
        copy.slot);
    ++Copies(copy.slot);
    free_bytes_[copy.host] -= Bytes(copy.slot);
    result_.bytes_to_load += Bytes(copy.slot);
    result_.moves.push_back(
        {PlacementMove::Kind::kLoad, copy.host, copy.slot, Bytes(copy.slot)});
  }

  void Unload(const Copy& copy) {
    std::erase(contents_[copy.host], copy.slot);
    --Copies(copy.slot);
    free_bytes_[copy.host] += Bytes(copy.slot);
    result_.moves.push_back(
        {PlacementMove::Kind::kUnload, copy.host, copy.slot, Bytes(copy.slot)});
  }

  const PlacementProblem& problem_;
  HostedSlots target_;
  HostedSlots contents_;                      // ascending
  std::vector<int> copies_;                   // [num_slots]
  std::vector<int64_t> free_bytes_;           // [num_hosts]
  std::vector<Copy> loads_;                   // to be done, in order
  std::vector<std::vector<SlotId>> unloads_;  // [num_hosts] to be done
  std::set<Copy> gave_way_;
  MoveSequence result_;
};

}  // namespace

absl::StatusOr<MoveSequence> PlanMoves(const PlacementProblem& problem,
                                       const HostedSlots& target) {
  RETURN_IF_ERROR(CheckPlacement(problem, target));
  return Sequencer(problem, target).Run();
}

}  // namespace expertmesh::router
