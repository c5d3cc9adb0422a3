#pragma once

// A placement under construction, with its busy rows kept up to date.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "router_service/control/placement_problem.h"

namespace expertmesh::router {

// Slots are indices (layer · num_experts + expert), hosts indices of the
// problem. One thread. Copyable: each attempt of the planner has its own.
class PlacementState {
 public:
  static constexpr int kNowhere = -1;

  // Fixed hosts hold what they hold, managed ones nothing. `problem` must
  // outlive this and be valid.
  explicit PlacementState(const PlacementProblem* problem);

  const PlacementProblem& problem() const { return *problem_; }
  int num_hosts() const { return static_cast<int>(contents_.size()); }

  // Ascending hosts of a slot; ascending slots of a host, of a host's layer.
  const std::vector<int>& holders(int slot) const { return holders_[slot]; }
  const std::vector<int>& contents(int host) const { return contents_[host]; }
  absl::Span<const int> contents(int host, int64_t layer) const;
  bool Holds(int host, int slot) const;

  // Rates are relative: their mean over all hosts is 1.
  double rate(int host) const { return rate_[host]; }
  double busy(int64_t layer, int host) const {
    return busy_[layer * num_hosts() + host];
  }
  // Busy rows of every host if the layer were spread perfectly.
  double ideal(int64_t layer) const { return ideal_[layer]; }
  // What the slot adds to the busy rows of each host that holds it, whichever
  // it is; with the summed rates of its holders given: what it would add.
  double Share(int slot) const { return Share(slot, rate_sum_[slot]); }
  double Share(int slot, double rate_sum) const {
    return rate_sum > 0 ? problem_->rows[slot] / rate_sum : 0;
  }
  double rate_sum(int slot) const { return rate_sum_[slot]; }

  // Below 0 where the host exceeds its budget; 0 for fixed hosts.
  int64_t free_bytes(int host) const { return free_bytes_[host]; }
  bool Fits(int slot, int host) const {
    return problem_->hosts[host].managed &&
           free_bytes_[host] >= problem_->BytesOf(slot);
  }

  // Requires: the host does not hold the slot, or does.
  void Add(int slot, int host);
  void Remove(int slot, int host);

  HostedSlots Hosted() const;

 private:
  void SpreadBusy(int slot, double sign);
  void Insert(int slot, int host);

  const PlacementProblem* problem_;
  std::vector<double> rate_;                // [num_hosts]
  std::vector<double> ideal_;               // [num_layers]
  std::vector<int64_t> free_bytes_;         // [num_hosts]
  std::vector<std::vector<int>> holders_;   // [num_slots]
  std::vector<double> rate_sum_;            // [num_slots] of its holders
  std::vector<std::vector<int>> contents_;  // [num_hosts]
  std::vector<double> busy_;                // [num_layers, num_hosts]
};

}  // namespace expertmesh::router
