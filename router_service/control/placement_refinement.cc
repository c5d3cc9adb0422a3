#include "router_service/control/placement_refinement.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <queue>
#include <utility>

namespace expertmesh::router {
namespace {

constexpr int kNowhere = PlacementState::kNowhere;
// Layers are taken in turn; a second time, because room may have come up.
constexpr int kRounds = 2;
// Least busy hosts that are considered to take load.
constexpr size_t kMaxTakers = 12;
// Layers that are searched for a slot to give room.
constexpr int64_t kMaxLayersSearched = 8;
// A layer this close to its ideal is done; a step must gain this much.
constexpr double kCloseEnough = 1.002;
constexpr double kLeastGain = 1e-3;

// One copy appears, disappears or moves.
struct Change {
  int slot;
  int from;  // or kNowhere
  int to;    // or kNowhere
};

// At most: a slot's change, and what gives way or comes back for it.
struct Step {
  Change changes[2] = {};
  int num_changes = 0;
  double busy = 0;  // of the busiest host touched, afterwards

  void Append(const Change& change) { changes[num_changes++] = change; }
};

using HostLoad = std::pair<double, int>;  // busy rows, host

class Refiner {
 public:
  Refiner(double rows_per_byte, PlacementState* state)
      : problem_(state->problem()),
        state_(state),
        rows_per_byte_(rows_per_byte),
        delta_(state->num_hosts()),
        layer_max_(problem_.num_layers),
        now_(CurrentContents(problem_)) {
    for (int64_t layer = 0; layer < problem_.num_layers; ++layer) {
      for (int host = 0; host < state->num_hosts(); ++host) {
        layer_max_[layer] =
            std::max(layer_max_[layer], state->busy(layer, host));
      }
    }
  }

  void RefineLayer(int64_t layer) {
    layer_ = layer;
    if (IsDone()) return;
    FillHeaps();
    // Far more steps than it takes; they all make progress, if little.
    const size_t limit = problem_.num_experts + 4 * delta_.size();
    for (size_t step = 0; step < limit && !IsDone(); ++step) {
      if (!Improve()) return;
    }
  }

 private:
  // A host that may take load, with its slots of the layer, lightest first.
  struct Taker {
    int host;
    std::vector<std::pair<double, int>> shares;  // (busy rows, slot)
    int spare = kNowhere;  // the lightest of them that others hold too
    // Slots of other layers, where the host is full; see FindElsewhere.
    bool has_looked_elsewhere = false;
    int spare_elsewhere = kNowhere;     // one that can go
    int returned_elsewhere = kNowhere;  // one for the busiest host
  };

  bool IsDone() const {
    return layer_max_[layer_] <= state_->ideal(layer_) * kCloseEnough;
  }

  void FillHeaps() {
    std::vector<HostLoad> all;
    std::vector<HostLoad> managed;
    for (int host = 0; host < state_->num_hosts(); ++host) {
      all.push_back({state_->busy(layer_, host), host});
      const PlacementHost& properties = problem_.hosts[host];
      if (properties.managed && properties.budget_bytes > 0) {
        managed.push_back(all.back());
      }
    }
    busiest_ = decltype(busiest_)({}, std::move(all));
    idlest_ = decltype(idlest_)({}, std::move(managed));
  }

  // Entries of heaps that a later change made untrue stay in them.
  bool IsCurrent(const HostLoad& entry) const {
    return entry.first == state_->busy(layer_, entry.second);
  }
  int Busiest() {
    while (!IsCurrent(busiest_.top())) busiest_.pop();
    return busiest_.top().second;
  }

  std::vector<Taker> FindTakers(int busiest) {
    std::vector<Taker> takers;
    std::vector<HostLoad> popped;
    while (!idlest_.empty() && takers.size() < kMaxTakers) {
      const HostLoad entry = idlest_.top();
      idlest_.pop();
      if (!IsCurrent(entry)) continue;
      if (!popped.empty() && popped.back() == entry) continue;
      popped.push_back(entry);
      if (entry.second != busiest) takers.push_back(MakeTaker(entry.second));
    }
    for (const HostLoad& entry : popped) idlest_.push(entry);
    return takers;
  }

  Taker MakeTaker(int host) const {
    Taker taker;
    taker.host = host;
    for (const int slot : state_->contents(host, layer_)) {
      taker.shares.push_back({state_->Share(slot), slot});
    }
    std::sort(taker.shares.begin(), taker.shares.end());
    for (const auto& [share, slot] : taker.shares) {
      if (state_->holders(slot).size() < 2) continue;
      taker.spare = slot;
      break;
    }
    return taker;
  }

  // Takes the best step that relieves the busiest host, if there is one.
  bool Improve() {
    const int busiest = Busiest();
    std::vector<Taker> takers = FindTakers(busiest);
    const auto slots = state_->contents(busiest, layer_);
    best_.reset();
    for (const int slot : slots) {
      if (state_->Share(slot) <= 0) continue;
      for (Taker& taker : takers) {
        if (state_->Holds(taker.host, slot)) continue;
        ConsiderGiving(slot, kNowhere, busiest, &taker);
        if (!problem_.hosts[busiest].managed) continue;
        ConsiderGiving(slot, busiest, busiest, &taker);
        ConsiderExchange(slot, busiest, taker);
      }
      if (problem_.hosts[busiest].managed &&
          state_->holders(slot).size() >= 2) {
        Step step;
        step.Append({slot, busiest, kNowhere});
        Consider(step);
      }
    }
    if (!best_.has_value()) return false;
    Take(*best_);
    return true;
  }

  // A copy for the taker, beside that of the busiest host or (`from`) instead.
  void ConsiderGiving(int slot, int from, int busiest, Taker* taker) {
    Step step;
    step.Append({slot, from, taker->host});
    if (state_->Fits(slot, taker->host)) {
      Consider(step);
      return;
    }
    // Slots of one layer are of one size, so one that goes makes room enough.
    if (taker->spare != kNowhere) {
      Step with_spare = step;
      with_spare.Append({taker->spare, taker->host, kNowhere});
      Consider(with_spare);
    }
    LookElsewhere(busiest, taker);
    if (taker->spare_elsewhere != kNowhere) {
      Step with_spare = step;
      with_spare.Append({taker->spare_elsewhere, taker->host, kNowhere});
      Consider(with_spare);
    }
    if (from != kNowhere && taker->returned_elsewhere != kNowhere) {
      step.Append({taker->returned_elsewhere, taker->host, from});
      Consider(step);
    }
  }

  void LookElsewhere(int busiest, Taker* taker) {
    if (taker->has_looked_elsewhere) return;
    taker->has_looked_elsewhere = true;
    taker->spare_elsewhere = FindElsewhere(taker->host, kNowhere);
    if (problem_.hosts[busiest].managed) {
      taker->returned_elsewhere = FindElsewhere(taker->host, busiest);
    }
  }

  // Slots of the taker whose share leaves both hosts about even.
  void ConsiderExchange(int slot, int busiest, const Taker& taker) {
    const double surplus =
        (state_->busy(layer_, busiest) - state_->busy(layer_, taker.host)) / 2;
    const auto above = std::lower_bound(
        taker.shares.begin(), taker.shares.end(),
        std::make_pair(state_->Share(slot) - surplus, kNowhere));
    const auto first = above == taker.shares.begin() ? above : above - 1;
    const auto last = above == taker.shares.end() ? above : above + 1;
    for (auto it = first; it != last; ++it) {
      if (state_->Holds(busiest, it->second)) continue;
      Step step;
      step.Append({slot, busiest, taker.host});
      step.Append({it->second, taker.host, busiest});
      Consider(step);
    }
  }

  // A slot of another layer, large enough, that `host` can lose to `to` (or
  // altogether) without that layer's becoming slower: the lightest of the first
  // of the next layers that has one.
  int FindElsewhere(int host, int to) const {
    const int64_t needed =
        problem_.slot_bytes[layer_] - state_->free_bytes(host);
    const int64_t num_others =
        std::min(problem_.num_layers - 1, kMaxLayersSearched);
    for (int64_t i = 1; i <= num_others; ++i) {
      const int64_t layer = (layer_ + i) % problem_.num_layers;
      const int64_t bytes = problem_.slot_bytes[layer];
      if (bytes < needed) continue;
      // The slot of this layer that leaves `to` makes room there.
      if (to != kNowhere &&
          bytes > state_->free_bytes(to) + problem_.slot_bytes[layer_]) {
        continue;
      }
      int lightest = kNowhere;
      for (const int slot : state_->contents(host, layer)) {
        if (lightest != kNowhere &&
            state_->Share(slot) >= state_->Share(lightest)) {
          continue;
        }
        if (IsHarmless({slot, host, to})) lightest = slot;
      }
      if (lightest != kNowhere) return lightest;
    }
    return kNowhere;
  }

  // Whether a copy can go, or move, without uncovering its slot or making its
  // layer slower.
  bool IsHarmless(const Change& change) const {
    const std::vector<int>& holders = state_->holders(change.slot);
    const int64_t layer = change.slot / problem_.num_experts;
    double rates = state_->rate_sum(change.slot) - state_->rate(change.from);
    if (change.to == kNowhere) {
      if (holders.size() < 2) return false;
    } else {
      if (state_->Holds(change.to, change.slot)) return false;
      rates += state_->rate(change.to);
    }
    const double share = state_->Share(change.slot, rates);
    if (change.to != kNowhere &&
        state_->busy(layer, change.to) + share > layer_max_[layer]) {
      return false;
    }
    const double more = share - state_->Share(change.slot);
    return more <= 0 ||
           std::all_of(holders.begin(), holders.end(), [&](int holder) {
             return holder == change.from ||
                    state_->busy(layer, holder) + more <= layer_max_[layer];
           });
  }

  void Consider(Step step) {
    const double before = layer_max_[layer_];
    double limit = before * (1 - kLeastGain);
    if (best_.has_value()) limit = std::min(limit, best_->busy);
    if (BusyOfTaker(step) >= limit) return;  // cheap, and settles most
    step.busy = BusiestAfter(step);
    if (step.busy >= limit) return;
    if (step.busy < before - LoadedBytes(step) * rows_per_byte_) best_ = step;
  }

  // Afterwards, of the host that the first change gives a slot; 0: none.
  double BusyOfTaker(const Step& step) const {
    const Change& given = step.changes[0];
    if (given.to == kNowhere) return 0;
    double rates = state_->rate_sum(given.slot) + state_->rate(given.to);
    if (given.from != kNowhere) rates -= state_->rate(given.from);
    double busy =
        state_->busy(layer_, given.to) + state_->Share(given.slot, rates);
    const Change& other = step.changes[1];
    if (step.num_changes == 2 && other.slot / problem_.num_experts == layer_) {
      busy -= state_->Share(other.slot);
    }
    return busy;
  }

  // Of the hosts that the step touches.
  double BusiestAfter(const Step& step) {
    for (int i = 0; i < step.num_changes; ++i) {
      if (step.changes[i].slot / problem_.num_experts == layer_) {
        AddDeltas(step.changes[i]);
      }
    }
    double busiest = 0;
    for (const int host : touched_) {
      busiest = std::max(busiest, state_->busy(layer_, host) + delta_[host]);
      delta_[host] = 0;
    }
    touched_.clear();
    return busiest;
  }

  void AddDeltas(const Change& change) {
    double rates = state_->rate_sum(change.slot);
    if (change.from != kNowhere) rates -= state_->rate(change.from);
    if (change.to != kNowhere) rates += state_->rate(change.to);
    const double before = state_->Share(change.slot);
    const double after = state_->Share(change.slot, rates);
    for (const int host : state_->holders(change.slot)) {
      Touch(host, (host == change.from ? 0 : after) - before);
    }
    if (change.to != kNowhere) Touch(change.to, after);
  }

  void Touch(int host, double delta) {
    touched_.push_back(host);
    delta_[host] += delta;
  }

  // Bytes that the step adds to what has to be loaded.
  double LoadedBytes(const Step& step) const {
    int64_t bytes = 0;
    for (int i = 0; i < step.num_changes; ++i) {
      const Change& change = step.changes[i];
      const int64_t size = problem_.BytesOf(change.slot);
      if (change.to != kNowhere && !HoldsNow(change.to, change.slot)) {
        bytes += size;
      }
      if (change.from != kNowhere && !HoldsNow(change.from, change.slot)) {
        bytes -= size;
      }
    }
    return static_cast<double>(bytes);
  }
  bool HoldsNow(int host, int slot) const {
    return std::binary_search(now_[host].begin(), now_[host].end(),
                              problem_.SlotAt(slot));
  }

  void Take(const Step& step) {
    std::vector<int> hosts;
    for (int i = 0; i < step.num_changes; ++i) {
      const Change& change = step.changes[i];
      if (change.from != kNowhere) state_->Remove(change.slot, change.from);
    }
    for (int i = 0; i < step.num_changes; ++i) {
      const Change& change = step.changes[i];
      if (change.to != kNowhere) state_->Add(change.slot, change.to);
      if (change.from != kNowhere) hosts.push_back(change.from);
      const auto& holders = state_->holders(change.slot);
      hosts.insert(hosts.end(), holders.begin(), holders.end());
    }
    for (const int host : hosts) {
      const HostLoad entry = {state_->busy(layer_, host), host};
      busiest_.push(entry);
      const PlacementHost& properties = problem_.hosts[host];
      if (properties.managed && properties.budget_bytes > 0) {
        idlest_.push(entry);
      }
    }
    layer_max_[layer_] = state_->busy(layer_, Busiest());
  }

  const PlacementProblem& problem_;
  PlacementState* const state_;
  const double rows_per_byte_;
  std::vector<double> delta_;      // [num_hosts] scratch, zero between uses
  std::vector<int> touched_;       // hosts with a delta
  std::vector<double> layer_max_;  // [num_layers] busy rows of the slowest host
  const HostedSlots now_;

  int64_t layer_ = 0;
  std::priority_queue<HostLoad> busiest_;
  std::priority_queue<HostLoad, std::vector<HostLoad>, std::greater<HostLoad>>
      idlest_;  // managed hosts only
  std::optional<Step> best_;
};

}  // namespace

void RefinePlacement(double rows_per_byte, PlacementState* state) {
  Refiner refiner(rows_per_byte, state);
  for (int round = 0; round < kRounds; ++round) {
    for (int64_t layer = 0; layer < state->problem().num_layers; ++layer) {
      refiner.RefineLayer(layer);
    }
  }
}

}  // namespace expertmesh::router
