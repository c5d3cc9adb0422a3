#pragma once

// Experts' outputs that go back added up (stop 6d).

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "services/core/dtype.h"
#include "services/core/worker_pool.h"

namespace expertmesh::expert {

// sum += weight · row, both [hidden_size].
struct SummedRow {
  const std::byte* row;
  float weight;
  float* sum;
};

// Adds one row after the other, of `dtype`, to f32 sums. Product
// and sum are rounded apart, as where the router adds, so that it makes no
// difference who does; nor do the threads of `pool`.
void AddRows(absl::Span<const SummedRow> rows, DType dtype, int64_t hidden_size,
             WorkerPool& pool);

}  // namespace expertmesh::expert
