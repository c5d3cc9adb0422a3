#pragma once

// Stops 5a to 5c: top-k choices → row groups within capacity. Pure: no clock,
// no network, no randomness; the same routing gives the same plan.

#include <cstdint>
#include <vector>

#include "router_service/dispatch/routing.h"
#include "router_service/model/gate.h"

namespace expertmesh::router {

struct CapacityOptions {
  double capacity_factor = 2.0;  // 0: no limit
  int64_t min_capacity = 64;     // rows
};

// Rows an expert accepts in one wave of one layer:
//   max(min_capacity, ceil(capacity_factor · tokens · top_k / num_experts)),
// or INT64_MAX where the factor is 0. Source: arXiv:2101.03961, section 2.2.
int64_t ExpertCapacity(const CapacityOptions& options, int64_t num_tokens,
                       int64_t top_k, int64_t num_experts);

// Consecutive rows for one expert in one wave.
struct RowGroup {
  int32_t expert_id = 0;
  uint32_t first_row = 0;
  uint32_t last_row = 0;  // one past the end
};

// Rows sorted by (wave, expert id, token). Vectors keep their capacity from
// plan to plan, so that a steady step allocates nothing.
struct DispatchPlan {
  std::vector<uint32_t> row_token;    // [num_rows]
  std::vector<float> row_weight;      // [num_rows]
  std::vector<RowGroup> groups;       // by (wave, expert id)
  std::vector<uint32_t> wave_groups;  // [num_waves + 1] offsets into groups
  // [num_tokens, top_k] row of each of the token's serving experts, ascending
  // expert id; -1 pads tokens with fewer. This is the order of the combine.
  std::vector<int32_t> token_rows;
  std::vector<RoutingAccount> accounts;  // [num_tokens]
  int64_t overflow_rows = 0;    // rows above capacity, before any policy
  int64_t max_expert_rows = 0;  // demand of the busiest expert, before capacity

  int64_t num_rows() const { return static_cast<int64_t>(row_token.size()); }
  int64_t num_waves() const {
    return static_cast<int64_t>(wave_groups.size()) - 1;
  }
};

// Builds plans. Owns scratch memory; one thread.
//
// Rule (one replica per expert): each expert keeps its `capacity` rows of
// highest gate score; of equal scores the earlier row (lower token) stays. The
// others overflow:
//   kWait      rank r (0-based, by the same order, among the expert's rows that
//              stay with it) goes in wave r / capacity.
//   kNextBest  tokens in ascending order: experts that are full and do not
//              already serve this token are masked and the gate's own rule is
//              applied again; the new experts take the row and, with it, room.
//              A token that finds fewer than top_k experts this way waits.
//   kDrop      the row is left out; the other rows keep their weights.
class DispatchPlanner {
 public:
  DispatchPlanner(const Gate* gate, const CapacityOptions& capacity);

  void set_capacity(const CapacityOptions& capacity) { capacity_ = capacity; }

  // Overwrites `plan`.
  void Build(const Routing& routing, DispatchPlan* plan);

 private:
  const Gate* const gate_;
  CapacityOptions capacity_;
};

}  // namespace expertmesh::router
