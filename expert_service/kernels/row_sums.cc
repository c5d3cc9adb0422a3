#include "expert_service/kernels/row_sums.h"

#include <algorithm>

#include "services/linalg/activation_row.h"

namespace expertmesh::expert {
namespace {

// A task is so many columns of all rows: each element is added by one thread,
// in the order of the rows.
constexpr int64_t kColumns = 256;
// Elements below which other threads are not worth waking.
constexpr int64_t kFewElements = 1 << 16;

void AddColumns(absl::Span<const SummedRow> rows, DType dtype, int64_t begin,
                int64_t end) {
  for (const SummedRow& row : rows) {
    AddScaledRow(row.weight, row.row, dtype, begin, end, row.sum + begin);
  }
}

}  // namespace

void AddRows(absl::Span<const SummedRow> rows, DType dtype, int64_t hidden_size,
             WorkerPool& pool) {
  if (static_cast<int64_t>(rows.size()) * hidden_size < kFewElements) {
    return AddColumns(rows, dtype, 0, hidden_size);
  }
  const int64_t tasks = (hidden_size + kColumns - 1) / kColumns;
  pool.ParallelFor(tasks, [&](int64_t task) {
    AddColumns(rows, dtype, task * kColumns,
               std::min(hidden_size, (task + 1) * kColumns));
  });
}

}  // namespace expertmesh::expert
