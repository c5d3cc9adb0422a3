#include "router_service/control/placement_packing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

// Managed hosts taken together.
struct ManagedRoom {
  int64_t bytes = 0;
  double mean_rate = 0;
};

// A host's room is rounded down to what slots can fill; none needs more than
// the whole model.
ManagedRoom SumRoom(const PlacementState& fixed) {
  const PlacementProblem& problem = fixed.problem();
  int64_t unit = 0;
  int64_t model = 0;
  for (const int64_t bytes : problem.slot_bytes) {
    unit = std::gcd(unit, bytes);
    model += bytes * problem.num_experts;
  }
  ManagedRoom room;
  int num_hosts = 0;
  for (int host = 0; host < fixed.num_hosts(); ++host) {
    if (!problem.hosts[host].managed || fixed.free_bytes(host) == 0) continue;
    const int64_t bytes = std::min(fixed.free_bytes(host), model);
    room.bytes += bytes - bytes % unit;
    room.mean_rate += fixed.rate(host);
    ++num_hosts;
  }
  room.mean_rate /= std::max(num_hosts, 1);
  return room;
}

std::vector<int64_t> SplitRoom(const PlacementProblem& problem, int64_t bytes,
                               const PackingOptions& options) {
  if (!options.even_layers) return {bytes};
  const int64_t num_layers =
      problem.num_layers -
      std::count(problem.slot_bytes.begin(), problem.slot_bytes.end(), 0);
  return std::vector<int64_t>(problem.num_layers, bytes / num_layers);
}

// [num_layers] managed hosts that could hold a slot of the layer.
std::vector<int> CountHosts(const PlacementProblem& problem) {
  std::vector<int> num_hosts(problem.num_layers);
  for (int64_t layer = 0; layer < problem.num_layers; ++layer) {
    num_hosts[layer] = static_cast<int>(std::count_if(
        problem.hosts.begin(), problem.hosts.end(),
        [&](const PlacementHost& host) {
          return host.managed && host.budget_bytes >= problem.slot_bytes[layer];
        }));
  }
  return num_hosts;
}

// [num_slots] managed hosts that hold the slot now, ascending.
std::vector<std::vector<int>> ManagedHolders(const PlacementProblem& problem) {
  std::vector<std::vector<int>> holders(problem.num_slots());
  for (size_t host = 0; host < problem.hosts.size(); ++host) {
    if (!problem.hosts[host].managed) continue;
    for (const SlotId slot : problem.hosts[host].hosted) {
      holders[problem.IndexOf(slot)].push_back(static_cast<int>(host));
    }
  }
  return holders;
}

class Packer {
 public:
  Packer(const PlacementProblem& problem, const PackingOptions& options)
      : problem_(problem),
        options_(options),
        state_(&problem),
        wanted_(CountCopies(state_, options)),
        busy_(problem.num_layers * problem.hosts.size()) {}

  absl::StatusOr<PlacementState> Pack() {
    OrderSlots();
    SetQuotas();
    if (options_.keep_limit > 0) KeepCurrent();
    FillQueues();
    for (const Item& item : items_) {
      PlaceCopies(item);
      if (state_.holders(item.slot).empty() && !ForceFirstCopy(item)) {
        const SlotId slot = problem_.SlotAt(item.slot);
        return absl::FailedPreconditionError(
            absl::StrCat("no host has room for expert ", slot.expert,
                         " of layer ", slot.layer));
      }
    }
    return std::move(state_);
  }

 private:
  struct Item {
    int slot;
    double share;  // busy rows each copy will bring, once all are placed
  };
  // Least busy first, then the emptiest.
  struct Candidate {
    double busy;
    double used;
    int host;
    bool operator>(const Candidate& other) const {
      return std::tie(busy, used, host) >
             std::tie(other.busy, other.used, other.host);
    }
  };
  using Queue = std::priority_queue<Candidate, std::vector<Candidate>,
                                    std::greater<Candidate>>;

  int Layer(int slot) const {
    return static_cast<int>(slot / problem_.num_experts);
  }
  double& Busy(int slot, int host) {
    return busy_[Layer(slot) * state_.num_hosts() + host];
  }
  double Used(int host) const {
    return 1 - static_cast<double>(state_.free_bytes(host)) /
                   static_cast<double>(problem_.hosts[host].budget_bytes);
  }

  // Layers take turns, so that they find the same room.
  void OrderSlots() {
    double rate = 0;
    int num_managed = 0;
    for (int host = 0; host < state_.num_hosts(); ++host) {
      if (!problem_.hosts[host].managed) continue;
      rate += state_.rate(host);
      ++num_managed;
    }
    rate /= std::max(num_managed, 1);
    for (int64_t e = 0; e < problem_.num_experts; ++e) {
      for (int64_t l = 0; l < problem_.num_layers; ++l) {
        const int slot = static_cast<int>(l * problem_.num_experts + e);
        if (problem_.BytesOf(slot) == 0) continue;
        items_.push_back({slot, state_.Share(slot, state_.rate_sum(slot) +
                                                       wanted_[slot] * rate)});
      }
    }
    std::stable_sort(
        items_.begin(), items_.end(),
        [](const Item& a, const Item& b) { return a.share > b.share; });
  }

  // Slots of a layer that a host may get: its part of the layer's copies.
  void SetQuotas() {
    layer_copies_.resize(problem_.num_layers);
    for (const Item& item : items_) {
      layer_copies_[Layer(item.slot)] += wanted_[item.slot];
    }
    for (const PlacementHost& host : problem_.hosts) {
      if (host.managed)
        managed_bytes_ += static_cast<double>(host.budget_bytes);
    }
  }
  bool IsWithinQuota(int slot, int host) const {
    if (!options_.even_layers) return true;
    const double part =
        static_cast<double>(problem_.hosts[host].budget_bytes) / managed_bytes_;
    return static_cast<double>(state_.contents(host, Layer(slot)).size()) <
           std::ceil(layer_copies_[Layer(slot)] * part - 1e-9);
  }

  void KeepCurrent() {
    std::vector<std::vector<int>> current = ManagedHolders(problem_);
    for (const Item& item : items_) {
      std::vector<int>& hosts = current[item.slot];
      std::stable_sort(hosts.begin(), hosts.end(), [&](int a, int b) {
        return Busy(item.slot, a) < Busy(item.slot, b);
      });
      const double limit = options_.keep_limit * state_.ideal(Layer(item.slot));
      for (const int host : hosts) {
        if (wanted_[item.slot] == 0) break;
        if (Busy(item.slot, host) + item.share > limit) break;
        if (state_.Fits(item.slot, host)) Place(item, host);
      }
    }
  }

  void FillQueues() {
    for (int64_t layer = 0; layer < problem_.num_layers; ++layer) {
      std::vector<Candidate> candidates;
      for (int host = 0; host < state_.num_hosts(); ++host) {
        if (!problem_.hosts[host].managed) continue;
        if (state_.free_bytes(host) < problem_.slot_bytes[layer]) continue;
        if (problem_.hosts[host].budget_bytes == 0) continue;
        candidates.push_back(
            {busy_[layer * state_.num_hosts() + host], Used(host), host});
      }
      queues_.emplace_back(std::greater<Candidate>(), std::move(candidates));
    }
  }

  void PlaceCopies(const Item& item) {
    Queue& queue = queues_[Layer(item.slot)];
    std::vector<int> passed;  // hosts to go back into the queue
    while (wanted_[item.slot] > 0 && !queue.empty()) {
      Candidate candidate = queue.top();
      queue.pop();
      const int host = candidate.host;
      // Room never comes back here, so a full host is out for good.
      if (!state_.Fits(item.slot, host)) continue;
      if (!IsWithinQuota(item.slot, host)) continue;
      if (candidate.used !=
          Used(host)) {  // other layers have been placed there
        candidate.used = Used(host);
        queue.push(candidate);
        continue;
      }
      passed.push_back(host);
      if (!state_.Holds(host, item.slot)) Place(item, host);
    }
    for (const int host : passed) {
      queue.push({Busy(item.slot, host), Used(host), host});
    }
  }

  void Place(const Item& item, int host) {
    state_.Add(item.slot, host);
    Busy(item.slot, host) += item.share;
    --wanted_[item.slot];
  }

  // Room may be left in pieces too small where layers differ in size; then
  // copies that others hold as well give way.
  bool ForceFirstCopy(const Item& item) {
    for (int host = 0; host < state_.num_hosts(); ++host) {
      if (!problem_.hosts[host].managed) continue;
      std::vector<int> spare;
      int64_t room = state_.free_bytes(host);
      for (const int slot : state_.contents(host)) {
        if (room >= problem_.BytesOf(item.slot)) break;
        if (state_.holders(slot).size() < 2) continue;
        spare.push_back(slot);
        room += problem_.BytesOf(slot);
      }
      if (room < problem_.BytesOf(item.slot)) continue;
      for (const int slot : spare) state_.Remove(slot, host);
      Place(item, host);
      return true;
    }
    return false;
  }

  const PlacementProblem& problem_;
  const PackingOptions options_;
  PlacementState state_;
  std::vector<int> wanted_;        // [num_slots] copies yet to be placed
  std::vector<Item> items_;        // heaviest first
  std::vector<int> layer_copies_;  // [num_layers] wanted in all
  double managed_bytes_ = 0;       // of all budgets
  // [num_layers, num_hosts] of managed hosts, by the shares of items: the
  // state's own figures mean little while copies are missing.
  std::vector<double> busy_;
  std::vector<Queue> queues_;  // [num_layers] hosts that may have room
};

}  // namespace

std::vector<int> CountCopies(const PlacementState& fixed,
                             const PackingOptions& options) {
  const PlacementProblem& problem = fixed.problem();
  const std::vector<int> max_copies = CountHosts(problem);
  const std::vector<std::vector<int>> current = ManagedHolders(problem);
  const ManagedRoom managed = SumRoom(fixed);
  // By layer where each has its own, else all in the first.
  std::vector<int64_t> rooms = SplitRoom(problem, managed.bytes, options);
  const auto room_of = [&](int slot) -> int64_t& {
    return rooms[options.even_layers ? slot / problem.num_experts : 0];
  };
  std::vector<int> copies(problem.num_slots());
  using Entry = std::pair<double, int>;  // demand per replica and byte; −slot
  std::priority_queue<Entry> queue;
  const auto enqueue = [&](int slot) {
    const double rows = fixed.Share(
        slot, fixed.rate_sum(slot) + copies[slot] * managed.mean_rate);
    const bool exists = static_cast<int>(current[slot].size()) > copies[slot];
    if (rows <= 0) return;
    if (copies[slot] >= max_copies[slot / problem.num_experts]) return;
    queue.push({rows * (exists ? 1 + options.copy_bonus : 1) /
                    static_cast<double>(problem.BytesOf(slot)),
                -slot});
  };
  for (int slot = 0; slot < problem.num_slots(); ++slot) {
    if (problem.BytesOf(slot) == 0) continue;
    if (fixed.holders(slot).empty()) {
      copies[slot] = 1;
      room_of(slot) -= problem.BytesOf(slot);
    }
    enqueue(slot);
  }
  while (!queue.empty()) {
    const int slot = -queue.top().second;
    queue.pop();
    if (problem.BytesOf(slot) > room_of(slot)) continue;
    ++copies[slot];
    room_of(slot) -= problem.BytesOf(slot);
    enqueue(slot);
  }
  return copies;
}

absl::StatusOr<PlacementState> PackPlacement(const PlacementProblem& problem,
                                             const PackingOptions& options) {
  return Packer(problem, options).Pack();
}

}  // namespace expertmesh::router
