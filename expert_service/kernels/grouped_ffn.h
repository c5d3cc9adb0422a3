#pragma once

// The kernel contract of an expert service (stop 6d).

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "services/checkpoint/model_config.h"
#include "services/core/dtype.h"
#include "services/core/worker_pool.h"
#include "services/linalg/gemm.h"

namespace expertmesh::expert {

// One expert's weights, packed.
struct PackedExpert {
  PackedMatrix gate_proj;  // [intermediate_size, hidden_size]
  PackedMatrix up_proj;    // [intermediate_size, hidden_size]
  PackedMatrix down_proj;  // [hidden_size, intermediate_size]

  size_t size_bytes() const {
    return gate_proj.size_bytes() + up_proj.size_bytes() +
           down_proj.size_bytes();
  }
};

// Rows [group_offsets[g], group_offsets[g + 1]) of x go through experts[g].
struct GroupedRows {
  absl::Span<const PackedExpert* const> experts;  // [num_groups]
  absl::Span<const uint32_t> group_offsets;       // [num_groups + 1]
  DType dtype = DType::kF32;  // of x and y: f32, bf16 or int8
  // [num_rows, hidden_size], rows RowBytes apart, 64-byte aligned.
  const void* x = nullptr;
  void* y = nullptr;  // [num_rows, hidden_size] likewise; must not alias x
};

// Runs down(silu(gate x) · up x) for every row group. Accumulates in f32; the
// intermediate product is rounded to `dtype` before the down projection, and so
// is y. Quantized experts take x and the intermediate product in codes instead
// (QuantizeRow) and accumulate in integers. Gate weights are applied later, in
// combine. A row's result does not depend on the other rows.
//
// Rows of int8 are what quantized experts take, so that these give what they
// give for the f32 rows that became codes; others take them as bf16 where their
// weights are, else as f32. Outputs are computed in f32 and become codes at the
// end. All experts of a service have weights of one format.
// Source: arXiv:2002.05202 (SwiGLU), arXiv:2211.15841 (grouping).
class GroupedFfn {
 public:
  virtual ~GroupedFfn() = default;
  // Requires shapes validated by the caller. Errors: INTERNAL on a device
  // fault.
  virtual absl::Status Run(const GroupedRows& rows) = 0;
};

struct GroupedFfnOptions {
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t max_rows = 0;  // of one Run; the workspace is sized once for it
  Activation activation = Activation::kSiluGlu;
  bool quantized = false;  // experts are int8 or int4
};

// Vectorised panels of services/linalg on the pool's threads. `pool` must
// outlive the result; one Run at a time.
std::unique_ptr<GroupedFfn> MakeGroupedFfnCpu(const GroupedFfnOptions& options,
                                              WorkerPool* pool);

}  // namespace expertmesh::expert
