#pragma once

// Stop 7: expert outputs → one vector per token.

#include <cstddef>
#include <cstdint>

#include "router_service/dispatch/combine_groups.h"
#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/dispatch/partial_sums.h"
#include "services/core/dtype.h"

namespace expertmesh::router {

// What experts gave for a plan's rows.
struct ExpertOutputs {
  DType dtype = DType::kF32;
  // [plan.num_rows(), hidden_size] of `dtype`, RowBytes apart, in the plan's
  // order; undefined for rows of a sum that is here.
  const std::byte* rows = nullptr;
  const CombineGroups* groups = nullptr;  // null: each expert by itself
  const PartialSums* sums = nullptr;      // null: none
};

// y[t] = sum over combine groups, ascending, of the sum over the token's
// serving experts of the group, ascending id, of row_weight · row, in f32: the
// one definition of combine, whatever the placement. Rows have already been
// rounded to the wire's type. Sums that are here are of such rows in that same
// order, so they change no bit.
//   y  [num_tokens, hidden_size] f32, overwritten, for tokens [first_token,
//      last_token)
void Combine(const DispatchPlan& plan, int64_t top_k,
             const ExpertOutputs& outputs, int64_t hidden_size,
             int64_t first_token, int64_t last_token, float* y);

}  // namespace expertmesh::router
