#pragma once

// Which rows of a token are added up among themselves (stop 7).

#include <cstdint>
#include <vector>

#include "router_service/dispatch/dispatch_plan.h"

namespace expertmesh::router {

// Experts belong to combine groups: group g has experts [g · size,
// (g + 1) · size). Whatever the placement, a token's rows of one group are
// added up first, then the groups.
class CombineGroups {
 public:
  explicit CombineGroups(int64_t size) : size_(size) {}

  // Takes the groups of the plan's rows; to be called anew when rows have
  // changed their experts.
  void Reset(const DispatchPlan& plan);

  // One past the last place whose row is of the same group as that of `place`.
  //   token_rows  [top_k] of one token, as in the plan
  int64_t EndOfGroup(const int32_t* token_rows, int64_t top_k,
                     int64_t place) const {
    int64_t end = place + 1;
    if (size_ == 1) return end;
    const int32_t group = row_group_[token_rows[place]];
    while (end < top_k && token_rows[end] >= 0 &&
           row_group_[token_rows[end]] == group) {
      ++end;
    }
    return end;
  }

 private:
  const int64_t size_;
  std::vector<int32_t> row_group_;  // [num_rows]; empty where size_ is 1
};

}  // namespace expertmesh::router
