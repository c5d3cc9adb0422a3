#include "router_service/dispatch/combine_groups.h"

#include <algorithm>

namespace expertmesh::router {

void CombineGroups::Reset(const DispatchPlan& plan) {
  if (size_ == 1) return;
  row_group_.resize(plan.row_token.size());
  for (const RowGroup& rows : plan.groups) {
    std::fill(row_group_.begin() + rows.first_row,
              row_group_.begin() + rows.last_row,
              static_cast<int32_t>(rows.expert_id / size_));
  }
}

}  // namespace expertmesh::router
