#include "router_service/control/placement_state.h"

#include <algorithm>

namespace expertmesh::router {
namespace {

void InsertSorted(int value, std::vector<int>* values) {
  values->insert(std::lower_bound(values->begin(), values->end(), value),
                 value);
}

void EraseSorted(int value, std::vector<int>* values) {
  values->erase(std::lower_bound(values->begin(), values->end(), value));
}

}  // namespace

PlacementState::PlacementState(const PlacementProblem* problem)
    : problem_(problem),
      ideal_(problem->num_layers),
      free_bytes_(problem->hosts.size()),
      holders_(problem->num_slots()),
      rate_sum_(problem->num_slots()),
      contents_(problem->hosts.size()),
      busy_(problem->num_layers * problem->hosts.size()) {
  double sum = 0;
  for (const PlacementHost& host : problem->hosts) sum += host.rate();
  for (const PlacementHost& host : problem->hosts) {
    rate_.push_back(host.rate() * num_hosts() / sum);
  }
  for (int64_t slot = 0; slot < problem->num_slots(); ++slot) {
    if (problem->BytesOf(slot) == 0) continue;
    ideal_[slot / problem->num_experts] += problem->rows[slot] / num_hosts();
  }
  for (int host = 0; host < num_hosts(); ++host) {
    const PlacementHost& properties = problem->hosts[host];
    free_bytes_[host] = properties.managed ? properties.budget_bytes : 0;
    if (properties.managed) continue;
    for (const SlotId slot : properties.hosted) {
      Insert(static_cast<int>(problem->IndexOf(slot)), host);
    }
  }
  for (int slot = 0; slot < problem->num_slots(); ++slot) SpreadBusy(slot, 1);
}

absl::Span<const int> PlacementState::contents(int host, int64_t layer) const {
  const std::vector<int>& all = contents_[host];
  const auto first = std::lower_bound(
      all.begin(), all.end(), static_cast<int>(layer * problem_->num_experts));
  const auto last = std::lower_bound(
      first, all.end(), static_cast<int>((layer + 1) * problem_->num_experts));
  return {all.data() + (first - all.begin()),
          static_cast<size_t>(last - first)};
}

bool PlacementState::Holds(int host, int slot) const {
  return std::binary_search(holders_[slot].begin(), holders_[slot].end(), host);
}

void PlacementState::Add(int slot, int host) {
  SpreadBusy(slot, -1);
  Insert(slot, host);
  free_bytes_[host] -= problem_->BytesOf(slot);
  SpreadBusy(slot, 1);
}

void PlacementState::Remove(int slot, int host) {
  SpreadBusy(slot, -1);
  EraseSorted(host, &holders_[slot]);
  EraseSorted(slot, &contents_[host]);
  rate_sum_[slot] = 0;
  for (const int holder : holders_[slot]) rate_sum_[slot] += rate_[holder];
  free_bytes_[host] += problem_->BytesOf(slot);
  SpreadBusy(slot, 1);
}

HostedSlots PlacementState::Hosted() const {
  HostedSlots hosted(contents_.size());
  for (size_t host = 0; host < contents_.size(); ++host) {
    for (const int slot : contents_[host]) {
      hosted[host].push_back(problem_->SlotAt(slot));
    }
  }
  return hosted;
}

void PlacementState::SpreadBusy(int slot, double sign) {
  const double share = sign * Share(slot);
  double* layer = busy_.data() + slot / problem_->num_experts * num_hosts();
  for (const int host : holders_[slot]) layer[host] += share;
}

void PlacementState::Insert(int slot, int host) {
  InsertSorted(host, &holders_[slot]);
  InsertSorted(slot, &contents_[host]);
  rate_sum_[slot] += rate_[host];
}

}  // namespace expertmesh::router
