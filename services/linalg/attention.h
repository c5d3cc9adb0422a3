#pragma once

// Attention of some rows over the paged keys and values of one KV head.

#include <cstddef>
#include <cstdint>

#include "services/linalg/kv_format.h"

namespace expertmesh {

// Pages of one sequence and one KV head: page p holds the positions
// [p * kPageTokens, (p + 1) * kPageTokens).
//   key page    [head_dim][kPageTokens], so that 16 keys are one vector
//   value page  [kPageTokens][head_dim]
// In int8 a page begins with the scales of its positions, [kPageTokens] f32,
// and the key or value of position j is scale_j times its codes.
// Pages before the first position that any row sees, and after the last one,
// are never read and may be null; nor does what lies at unseen positions
// matter.
struct PagedKv {
  KvFormat format = KvFormat::kF32;  // the arithmetic is f32
  const std::byte* const* key_pages = nullptr;
  const std::byte* const* value_pages = nullptr;
};

// out[r] = sum over keys j that r sees of softmax_j(queries[r] . k_j) v_j.
//   queries    [num_rows, head_dim], already scaled
//   positions  [num_rows] >= 0: row r sees keys in (position - window,
//              position], or [0, position] where window is 0
//   out        [num_rows, head_dim], overwritten, must not alias queries
// Rows are (query, head of the group) pairs that share the KV head, in any
// order; neighbours with near positions share loads.
//
// A row's result depends on its own query, position and visible keys only, and
// has the same bits in every instruction set: online softmax over blocks of 64
// absolute positions, ascending. A score is the sum over codes times the key's
// scale, rounded once; a value's scale is taken into its weight, rounded once,
// after that weight was added to the softmax's sum. One thread; allocates
// nothing.
void AttendRows(const float* queries, const int64_t* positions,
                int64_t num_rows, int64_t head_dim, int64_t window,
                const PagedKv& kv, float* out);

}  // namespace expertmesh
