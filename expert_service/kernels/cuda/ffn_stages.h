#pragma once

// The stages of a batch, each a launch; ffn_launch.cc puts them in order.

#include "expert_service/kernels/cuda/ffn_kernels.h"

namespace expertmesh::expert {

// The product of gate and up, or the one that follows.
enum class Product { kGateUp, kDown };

// Rows of a large group that one block takes, and the most of a small one.
inline constexpr int kSmallRows = 32;
inline constexpr int kLargeRows = 64;
// With weights row after row: the most of a small group.
inline constexpr int kFewRows = 4;

// One product of a batch for some of its tiles.
struct ProductArgs {
  const CudaExpertView* experts;  // [groups]
  const RowTile* tiles;           // [num_tiles]
  int32_t num_tiles;
  int32_t n;  // outputs
  int32_t k;
  // Tensor cores: bf16 [rows, padded k], zeros behind k. Else f32 [rows, k].
  const void* x;
  const float* row_scales;  // [rows], multiply sums; may be null
  // Gate and up: bf16 [rows, padded n], or f32 [rows, n] for the plain kernel.
  // Down: [rows, n].
  void* out;
  bool is_f32;    // down: out is f32, else bf16
  bool rounds_h;  // plain kernel, gate and up: to bf16
};

// Tensor cores; tiles of at most kSmallRows and of at most kLargeRows rows.
cudaError_t LaunchSmallTiles(const ProductArgs& args, Product product,
                             WeightFormat format, cudaStream_t stream);
cudaError_t LaunchLargeTiles(const ProductArgs& args, Product product,
                             WeightFormat format, cudaStream_t stream);
// f32 and f16 weights; tiles of any number of rows.
cudaError_t LaunchPlainTiles(const ProductArgs& args, Product product,
                             WeightFormat format, cudaStream_t stream);

// Weights row after row (WeightOrder::kRows); tiles of at most kFewRows rows.
cudaError_t LaunchFewRows(const ProductArgs& args, Product product,
                          cudaStream_t stream);

// Grouped products of such weights by a library, a tile for each group. What
// they give: bf16 [rows, padded n], of gate and of up, or of down.
struct GemmRows {
  uint16_t* first;
  uint16_t* second;  // of up
};
// And where their matrices are, device memory: of gate and up two a tile.
struct GemmMatrices {
  const void** w;
  const void** x;
  void** y;
};
cudaError_t LaunchGemmPointers(const ProductArgs& args, Product product,
                               const GemmRows& rows, const GemmMatrices& to,
                               cudaStream_t stream);
// From there to args.out.
cudaError_t LaunchFinishGemms(const ProductArgs& args, Product product,
                              const GemmRows& rows, cudaStream_t stream);

// Rows as they travel [rows, n] to bf16 [rows, padded n], zeros behind n. Codes
// stay as they are, and `scales` [rows] is then written.
cudaError_t LaunchRowsToBf16(const void* x, DType dtype, int64_t num_rows,
                             int64_t n, uint16_t* out, float* scales,
                             cudaStream_t stream);
// To f32 [rows, n].
cudaError_t LaunchRowsToF32(const void* x, DType dtype, int64_t num_rows,
                            int64_t n, float* out, cudaStream_t stream);
// f32 [rows, n] to rows of int8, as QuantizeRow does.
cudaError_t LaunchQuantizeRows(const float* x, int64_t num_rows, int64_t n,
                               void* out, cudaStream_t stream);

// Rows [rows, n] of `dtype`, lone ones and sums as `table` has it, of so much
// room, to `out` (GroupedRows::reduction).
cudaError_t LaunchReduceRows(const void* table, int64_t room_rows,
                             const void* rows, DType dtype, int64_t n,
                             void* out, cudaStream_t stream);

}  // namespace expertmesh::expert
