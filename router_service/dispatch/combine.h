#pragma once

// Stop 7: expert outputs → one vector per token.

#include <cstddef>
#include <cstdint>

#include "router_service/dispatch/dispatch_plan.h"
#include "services/core/dtype.h"

namespace expertmesh::router {

// y[t] = sum over the token's serving experts, ascending id, of
// row_weight · row, in f32: the one definition of combine, whatever the
// placement. Rows have already been rounded to the wire's type.
//   rows  [plan.num_rows(), hidden_size] of `dtype`, in the plan's order,
//         64-byte aligned
//   y     [num_tokens, hidden_size] f32, overwritten, for tokens
//         [first_token, last_token)
void Combine(const DispatchPlan& plan, int64_t top_k, DType dtype,
             const std::byte* rows, int64_t hidden_size, int64_t first_token,
             int64_t last_token, float* y);

// Whether no value of one row [hidden_size] of `dtype` is infinite or NaN.
bool IsFiniteRow(DType dtype, const std::byte* row, int64_t hidden_size);

}  // namespace expertmesh::router
