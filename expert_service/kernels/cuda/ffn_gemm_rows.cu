// What lies around grouped products by cuBLAS: where their matrices are, and
// rows from one to the next. Large groups only: a tile is a group.

#include "expert_service/kernels/cuda/ffn_stages.h"
#include "expert_service/kernels/cuda/fragment_layout.h"
#include "expert_service/kernels/cuda/intrinsics.cuh"
#include "expert_service/kernels/cuda/launch.h"
#include "expert_service/kernels/cuda/silu.cuh"

namespace expertmesh::expert {
namespace {

constexpr int kThreads = 256;
// That share the rows of a group.
constexpr int kBlocksPerTile = 64;

__global__ void __launch_bounds__(kThreads)
    GemmPointers(ProductArgs args, Product product, GemmRows rows,
                 GemmMatrices to) {
  const int i =
      static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= args.num_tiles) return;
  const RowTile tile = args.tiles[i];
  const CudaExpertView& expert = args.experts[tile.group];
  const auto* const x = static_cast<const uint16_t*>(args.x) +
                        tile.first_row * PaddedExtent(args.k);
  const int64_t at = tile.first_row * PaddedExtent(args.n);
  if (product == Product::kGateUp) {
    to.w[2 * i] = expert.gate.fragments;
    to.w[2 * i + 1] = expert.up.fragments;
    to.x[2 * i] = to.x[2 * i + 1] = x;
    to.y[2 * i] = rows.first + at;
    to.y[2 * i + 1] = rows.second + at;
  } else {
    to.w[i] = expert.down.fragments;
    to.x[i] = x;
    to.y[i] = rows.first + at;
  }
}

__device__ __forceinline__ float ValueOf(const uint16_t* rows, int64_t at) {
  return Bf16BitsToF32(rows[at]);
}

// Silu(gate) · up, with row_scales, to args.out.
__device__ __forceinline__ void GluRow(const ProductArgs& args,
                                       const GemmRows& rows, int64_t row) {
  const int64_t padded = PaddedExtent(args.n);
  const float scale = args.row_scales != nullptr ? args.row_scales[row] : 1.0f;
  for (int64_t i = threadIdx.x; i < padded; i += kThreads) {
    const int64_t at = row * padded + i;
    static_cast<uint16_t*>(args.out)[at] =
        Bf16BitsOf(Silu(scale * ValueOf(rows.first, at)) *
                   (scale * ValueOf(rows.second, at)));
  }
}

// To args.out, without padding.
__device__ __forceinline__ void UnpadRow(const ProductArgs& args,
                                         const GemmRows& rows, int64_t row) {
  const int64_t padded = PaddedExtent(args.n);
  for (int64_t i = threadIdx.x; i < args.n; i += kThreads) {
    if (args.is_f32) {
      static_cast<float*>(args.out)[row * args.n + i] =
          ValueOf(rows.first, row * padded + i);
    } else {
      static_cast<uint16_t*>(args.out)[row * args.n + i] =
          rows.first[row * padded + i];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    FinishGemms(ProductArgs args, Product product, GemmRows rows) {
  const RowTile tile = args.tiles[blockIdx.x / kBlocksPerTile];
  for (int i = static_cast<int>(blockIdx.x) % kBlocksPerTile; i < tile.num_rows;
       i += kBlocksPerTile) {
    if (product == Product::kGateUp) {
      GluRow(args, rows, tile.first_row + i);
    } else {
      UnpadRow(args, rows, tile.first_row + i);
    }
  }
}

}  // namespace

cudaError_t LaunchGemmPointers(const ProductArgs& args, Product product,
                               const GemmRows& rows, const GemmMatrices& to,
                               cudaStream_t stream) {
  const int64_t blocks = (args.num_tiles + kThreads - 1) / kThreads;
  return Launch(&GemmPointers, blocks, kThreads, 0, stream, args, product, rows,
                to);
}

cudaError_t LaunchFinishGemms(const ProductArgs& args, Product product,
                              const GemmRows& rows, cudaStream_t stream) {
  return Launch(&FinishGemms,
                static_cast<int64_t>(args.num_tiles) * kBlocksPerTile, kThreads,
                0, stream, args, product, rows);
}

}  // namespace expertmesh::expert
