#include "services/linalg/attention.h"

#include "services/linalg/isa/kernels.h"

namespace expertmesh {

void AttendRows(const float* queries, const int64_t* positions,
                int64_t num_rows, int64_t head_dim, int64_t window,
                const PagedKv& kv, float* out) {
  const AttendFn kernel = ActiveKernels().attend[static_cast<int>(kv.format)];
  kernel({.queries = queries,
          .positions = positions,
          .num_rows = num_rows,
          .head_dim = head_dim,
          .window = window,
          .key_pages = reinterpret_cast<const void* const*>(kv.key_pages),
          .value_pages = reinterpret_cast<const void* const*>(kv.value_pages),
          .out = out});
}

}  // namespace expertmesh
