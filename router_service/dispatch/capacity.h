#pragma once

// Stop 5b: how many rows an expert accepts.

#include <cstdint>

namespace expertmesh::router {

struct CapacityOptions {
  double capacity_factor = 2.0;  // 0: no limit
  int64_t min_capacity = 64;     // rows
  // Gate mass that policies other than `wait` may cost, over all mass, in a
  // sliding window; 0: they change nothing; 1: no bound.
  double max_lost_gate_mass = 0.02;
};

// Rows an expert accepts in one wave of one layer:
//   max(min_capacity, ceil(capacity_factor · tokens · top_k / num_experts)),
// or INT64_MAX where the factor is 0. At least 1 where there are tokens.
// Source: arXiv:2101.03961, section 2.2.
int64_t ExpertCapacity(const CapacityOptions& options, int64_t num_tokens,
                       int64_t top_k, int64_t num_experts);

}  // namespace expertmesh::router
