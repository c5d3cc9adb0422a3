#include "router_service/control/placement_refinement.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace expertmesh::router {
namespace {

constexpr int kNowhere = PlacementState::kNowhere;
// Layers are taken in turn; a second time, because room may have come up.
constexpr int kRounds = 2;
// Least busy hosts that are considered to take load.
constexpr size_t kMaxTakers = 8;
// Copies of such a host that are considered to give way.
constexpr size_t kMaxSpares = 4;
// Layers that are searched for a slot to give room.
constexpr int64_t kMaxLayersSearched = 4;
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
  double loss = 0;  // busy rows that another layer's slowest host gains
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
    first_slot_ = layer * problem_.num_experts;
    end_slot_ = first_slot_ + problem_.num_experts;
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
    std::vector<int> spares;  // the lightest of them that others hold too
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
      if (taker.spares.size() == kMaxSpares) break;
      if (state_->holders(slot).size() >= 2) taker.spares.push_back(slot);
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
      if (state_->Share(slot) > 0) ConsiderWithin(slot, busiest, takers);
    }
    // Other layers are left alone as long as this one can help itself.
    if (!best_.has_value()) {
      for (const Taker& taker : takers) ConsiderAcross(slots, busiest, taker);
    }
    if (!best_.has_value()) return false;
    Take(*best_);
    return true;
  }

  // Steps that touch slots of this layer only.
  void ConsiderWithin(int slot, int busiest, const std::vector<Taker>& takers) {
    const bool is_managed = problem_.hosts[busiest].managed;
    for (const Taker& taker : takers) {
      if (state_->Holds(taker.host, slot)) continue;
      ConsiderGiving({slot, kNowhere, taker.host}, taker);
      if (!is_managed) continue;
      ConsiderGiving({slot, busiest, taker.host}, taker);
      ConsiderExchange(slot, busiest, taker);
    }
    if (is_managed && state_->holders(slot).size() >= 2) {
      Consider({slot, busiest, kNowhere});
    }
  }

  // A copy for the taker, by itself or instead of a spare one: slots of one
  // layer are of one size, so one that goes makes room enough.
  void ConsiderGiving(const Change& given, const Taker& taker) {
    if (state_->Fits(given.slot, taker.host)) {
      Consider(given);
      return;
    }
    for (const int spare : taker.spares) {
      Consider(given, {spare, taker.host, kNowhere});
    }
  }

  // Steps by which a full taker gets a copy and another layer gives room.
  void ConsiderAcross(absl::Span<const int> slots, int busiest,
                      const Taker& taker) {
    if (state_->free_bytes(taker.host) >= problem_.slot_bytes[layer_]) return;
    const int spare = FindElsewhere(taker.host, kNowhere);
    const int returned = problem_.hosts[busiest].managed
                             ? FindElsewhere(taker.host, busiest)
                             : kNowhere;
    for (const int slot : slots) {
      if (state_->Share(slot) <= 0 || state_->Holds(taker.host, slot)) continue;
      if (spare != kNowhere) {
        Consider({slot, kNowhere, taker.host}, {spare, taker.host, kNowhere});
      }
      if (returned != kNowhere) {
        Consider({slot, busiest, taker.host}, {returned, taker.host, busiest});
      }
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
      Consider({slot, busiest, taker.host}, {it->second, taker.host, busiest});
    }
  }

  // A slot of another layer, large enough, that `host` can lose to `to` (or
  // altogether) with the least harm to that layer.
  int FindElsewhere(int host, int to) const {
    const int64_t needed =
        problem_.slot_bytes[layer_] - state_->free_bytes(host);
    const int64_t num_others =
        std::min(problem_.num_layers - 1, kMaxLayersSearched);
    int best = kNowhere;
    double best_loss = std::numeric_limits<double>::infinity();
    double best_share = 0;
    for (int64_t i = 1; i <= num_others; ++i) {
      const int64_t layer = (layer_ + i) % problem_.num_layers;
      const int64_t bytes = problem_.slot_bytes[layer];
      if (bytes < needed) continue;
      // The slot of this layer that leaves `to` makes room there.
      if (to != kNowhere &&
          bytes > state_->free_bytes(to) + problem_.slot_bytes[layer_]) {
        continue;
      }
      for (const int slot : state_->contents(host, layer)) {
        const double loss = Loss({slot, host, to});
        const double share = state_->Share(slot);
        if (std::tie(loss, share) >= std::tie(best_loss, best_share)) continue;
        best = slot;
        best_loss = loss;
        best_share = share;
      }
      if (best_loss == 0) break;  // the lightest of the first layer will do
    }
    return best;
  }

  // By how much the slowest host of another layer becomes slower if a copy goes
  // or moves; infinite where it cannot.
  double Loss(const Change& change) const {
    constexpr double kCannot = std::numeric_limits<double>::infinity();
    const std::vector<int>& holders = state_->holders(change.slot);
    const int64_t layer = change.slot / problem_.num_experts;
    if (change.to == kNowhere && holders.size() < 2) return kCannot;
    double rates = state_->rate_sum(change.slot) - state_->rate(change.from);
    double slowest = layer_max_[layer];
    if (change.to != kNowhere) {
      if (state_->Holds(change.to, change.slot)) return kCannot;
      rates += state_->rate(change.to);
      slowest = std::max(slowest, state_->busy(layer, change.to) +
                                      state_->Share(change.slot, rates));
    }
    const double more =
        state_->Share(change.slot, rates) - state_->Share(change.slot);
    for (const int holder : holders) {
      if (holder == change.from) continue;
      slowest = std::max(slowest, state_->busy(layer, holder) + more);
    }
    return slowest - layer_max_[layer];
  }

  void Consider(const Change& change) { ConsiderStep(Step{{change}, 1}); }
  void Consider(const Change& change, const Change& other) {
    ConsiderStep(Step{{change, other}, 2});
  }
  void ConsiderStep(Step step) {
    const double before = layer_max_[layer_];
    const Change& last = step.changes[step.num_changes - 1];
    if (!IsOfLayer(last)) step.loss = Loss(last);
    double limit = before * (1 - kLeastGain);
    if (best_.has_value()) limit = std::min(limit, best_->busy + best_->loss);
    limit -= step.loss;
    if (BusyOfTaker(step) >= limit) return;  // cheap, and settles most
    step.busy = BusiestAfter(step);
    if (step.busy >= limit) return;
    // Where another layer pays, the gain must be real: hosts that the step does
    // not touch may be as busy.
    const double after = step.loss > 0 ? SlowestAfter(step) : step.busy;
    const double cost = step.loss + LoadedBytes(step) * rows_per_byte_;
    if (after + cost < before * (1 - (step.loss > 0 ? kLeastGain : 0))) {
      best_ = step;
    }
  }

  // Of all hosts.
  double SlowestAfter(const Step& step) {
    for (int i = 0; i < step.num_changes; ++i) {
      if (IsOfLayer(step.changes[i])) AddDeltas(step.changes[i]);
    }
    double slowest = 0;
    for (int host = 0; host < state_->num_hosts(); ++host) {
      slowest = std::max(slowest, state_->busy(layer_, host) + delta_[host]);
    }
    for (const int host : touched_) delta_[host] = 0;
    touched_.clear();
    return slowest;
  }

  bool IsOfLayer(const Change& change) const {
    return change.slot >= first_slot_ && change.slot < end_slot_;
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
    if (step.num_changes == 2 && IsOfLayer(other)) {
      busy -= state_->Share(other.slot);
    }
    return busy;
  }

  // Of the hosts that the step touches.
  double BusiestAfter(const Step& step) {
    for (int i = 0; i < step.num_changes; ++i) {
      if (IsOfLayer(step.changes[i])) AddDeltas(step.changes[i]);
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
    const Change& last = step.changes[step.num_changes - 1];
    if (!IsOfLayer(last))
      layer_max_[last.slot / problem_.num_experts] += step.loss;
  }

  const PlacementProblem& problem_;
  PlacementState* const state_;
  const double rows_per_byte_;
  std::vector<double> delta_;      // [num_hosts] scratch, zero between uses
  std::vector<int> touched_;       // hosts with a delta
  std::vector<double> layer_max_;  // [num_layers] busy rows of the slowest host
  const HostedSlots now_;

  int64_t layer_ = 0;
  int64_t first_slot_ = 0;  // of the layer; one past its last
  int64_t end_slot_ = 0;
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
