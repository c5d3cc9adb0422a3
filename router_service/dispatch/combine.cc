#include "router_service/dispatch/combine.h"

#include <algorithm>

#include "absl/types/span.h"
#include "services/linalg/activation_row.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

// Columns that are added up apart at a time, on the stack.
constexpr int64_t kColumns = 1024;

// y += weight · row for columns [begin, end) of one row.
void AddRow(const DispatchPlan& plan, const ExpertOutputs& outputs, int32_t row,
            int64_t hidden_size, int64_t begin, int64_t end, float* y) {
  AddScaledRow(plan.row_weight[row],
               outputs.rows + row * RowBytes(outputs.dtype, hidden_size),
               outputs.dtype, begin, end, y);
}

// y += the sum of rows, which begins at zero.
void AddGroup(const DispatchPlan& plan, const ExpertOutputs& outputs,
              absl::Span<const int32_t> group, int64_t hidden_size, float* y) {
  alignas(64) float sum[kColumns];
  for (int64_t begin = 0; begin < hidden_size; begin += kColumns) {
    const int64_t end = std::min(begin + kColumns, hidden_size);
    std::fill_n(sum, end - begin, 0.0f);
    for (const int32_t row : group) {
      AddRow(plan, outputs, row, hidden_size, begin, end, sum);
    }
    Add(sum, end - begin, y + begin);
  }
}

void CombineToken(const DispatchPlan& plan, int64_t top_k,
                  const ExpertOutputs& outputs, int64_t hidden_size,
                  int64_t token, float* y) {
  const int32_t* const token_rows = plan.token_rows.data() + token * top_k;
  std::fill_n(y, hidden_size, 0.0f);
  int64_t end;
  for (int64_t place = 0; place < top_k && token_rows[place] >= 0;
       place = end) {
    end = outputs.groups == nullptr
              ? place + 1
              : outputs.groups->EndOfGroup(token_rows, top_k, place);
    const float* const sum = outputs.sums == nullptr
                                 ? nullptr
                                 : outputs.sums->Find(token, place, end);
    if (sum != nullptr) {
      Add(sum, hidden_size, y);
    } else if (place == 0 || end == place + 1) {
      // Added to zero, or alone, rows need no sum of their own: no bit differs.
      for (; place < end; ++place) {
        AddRow(plan, outputs, token_rows[place], hidden_size, 0, hidden_size,
               y);
      }
    } else {
      AddGroup(plan, outputs,
               absl::MakeConstSpan(token_rows + place, token_rows + end),
               hidden_size, y);
    }
  }
}

}  // namespace

void Combine(const DispatchPlan& plan, int64_t top_k,
             const ExpertOutputs& outputs, int64_t hidden_size,
             int64_t first_token, int64_t last_token, float* y) {
  for (int64_t token = first_token; token < last_token; ++token) {
    CombineToken(plan, top_k, outputs, hidden_size, token,
                 y + token * hidden_size);
  }
}

}  // namespace expertmesh::router
