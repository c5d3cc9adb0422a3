#pragma once

// The kernel contract of an expert service (stop 6d).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "services/checkpoint/model_config.h"
#include "services/core/dtype.h"
#include "services/core/worker_pool.h"
#include "services/linalg/buffer.h"
#include "services/linalg/gemm.h"
#include "services/linalg/tensor_view.h"

namespace expertmesh::expert {

// One expert's weights, where and as one kernel takes them. Immutable;
// thread-safe.
class LoadedExpert {
 public:
  virtual ~LoadedExpert() = default;
  virtual size_t size_bytes() const = 0;
};

// The CPU's.
struct PackedExpert final : LoadedExpert {
  PackedMatrix gate_proj;  // [intermediate_size, hidden_size]
  PackedMatrix up_proj;    // [intermediate_size, hidden_size]
  PackedMatrix down_proj;  // [hidden_size, intermediate_size]

  PackedExpert() = default;
  PackedExpert(PackedMatrix gate, PackedMatrix up, PackedMatrix down)
      : gate_proj(std::move(gate)),
        up_proj(std::move(up)),
        down_proj(std::move(down)) {}

  size_t size_bytes() const override {
    return gate_proj.size_bytes() + up_proj.size_bytes() +
           down_proj.size_bytes();
  }
};

// One expert's weights as a checkpoint has them.
struct ExpertTensors {
  TensorView gate_proj;  // [intermediate_size, hidden_size]
  TensorView up_proj;    // [intermediate_size, hidden_size]
  TensorView down_proj;  // [hidden_size, intermediate_size]
};

// Which rows of outputs go back added up, the partial sums of combine groups,
// and which alone.
struct RowReduction {
  // Sum s is of rows sum_rows[i], each times sum_weights[i], with i from
  // sum_offsets[s] to sum_offsets[s + 1]: from zero and in this order, product
  // and sum rounded apart (row_sums.h).
  absl::Span<const uint32_t> sum_offsets;  // [num_sums + 1]
  absl::Span<const uint32_t> sum_rows;
  absl::Span<const float> sum_weights;
  absl::Span<const uint32_t> lone_rows;  // [num_lone]

  size_t num_sums() const { return sum_offsets.size() - 1; }
  // What is to go back, which is no more than there are rows.
  size_t num_outputs() const { return lone_rows.size() + num_sums(); }
  // Where in y the sums are, behind the lone rows.
  static size_t SumsAt(size_t lone_bytes) {
    return (lone_bytes + 63) / 64 * 64;
  }
  // The most that y takes, with rows of the widest type.
  static size_t MaxBytes(int64_t max_rows, int64_t hidden_size) {
    // A single element is smaller than its scale.
    return static_cast<size_t>(max_rows) *
               std::max(RowBytes(DType::kF32, hidden_size),
                        RowBytes(DType::kInt8, hidden_size)) +
           64;
  }
};

// Rows [group_offsets[g], group_offsets[g + 1]) of x go through experts[g].
struct GroupedRows {
  absl::Span<const LoadedExpert* const> experts;  // [num_groups]
  absl::Span<const uint32_t> group_offsets;       // [num_groups + 1]
  DType dtype = DType::kF32;  // of x and y: f32, bf16 or int8
  // [num_rows, hidden_size], rows RowBytes apart, 64-byte aligned.
  const void* x = nullptr;
  void* y = nullptr;  // [num_rows, hidden_size] likewise; must not alias x
  // Where given, y has [num_lone, hidden_size], and at SumsAt f32 [num_sums,
  // hidden_size]. For kernels that add rows.
  const RowReduction* reduction = nullptr;
};

// Memory for rows, 64-byte aligned, given back with its last reference.
using RowBuffer = std::shared_ptr<std::byte>;

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
//
// That is the CPU's arithmetic. A CUDA device multiplies bf16: experts in bf16
// or codes take x as bf16 (of int8 rows the codes, which bf16 holds exactly),
// and round the intermediate product to it.
// Source: arXiv:2002.05202 (SwiGLU), arXiv:2211.15841 (grouping).
//
// Several batches may be under way at a time, each started and then finished,
// in one order. Used by one thread. What is not pure here suits a kernel that
// computes on the caller's thread and is done when Start returns.
//
// A device fault is INTERNAL and lasts: whatever was started and all that
// follows ends with it.
class GroupedFfn {
 public:
  virtual ~GroupedFfn() = default;

  // Batches that may be started and not finished.
  virtual int max_started() const { return 1; }

  // Memory for x, or for y, of one batch, which begins where it does. Throws
  // std::bad_alloc, as Buffer does. Ends before this object.
  virtual RowBuffer NewRowBuffer(size_t bytes);
  // Whether x and y may lie anywhere; else in row buffers only.
  virtual bool takes_any_memory() const { return true; }
  // Whether batches may have a reduction.
  virtual bool adds_rows() const { return false; }

  // x, y and the experts stay until the batch is finished; the spans need not.
  // Requires shapes and experts validated by the caller, and fewer than
  // max_started() under way. After an error nothing was started.
  virtual absl::Status Start(const GroupedRows& rows) = 0;
  // Waits for the oldest batch that is under way, of which there is one.
  virtual absl::Status Finish() { return absl::OkStatus(); }

  // A batch by itself.
  absl::Status Run(const GroupedRows& rows) {
    const absl::Status started = Start(rows);
    return started.ok() ? Finish() : started;
  }
};

struct GroupedFfnOptions {
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t max_rows = 0;  // of a batch; the workspace is sized once for it
  Activation activation = Activation::kSiluGlu;
  bool quantized = false;  // experts are int8 or int4
};

// Vectorised panels of services/linalg on the pool's threads, for
// PackedExperts. `pool` must outlive the result.
std::unique_ptr<GroupedFfn> MakeGroupedFfnCpu(const GroupedFfnOptions& options,
                                              WorkerPool* pool);

inline RowBuffer GroupedFfn::NewRowBuffer(size_t bytes) {
  const auto buffer = std::make_shared<Buffer>(bytes);
  return RowBuffer(buffer, buffer->data());
}

}  // namespace expertmesh::expert
