// Weights row after row, and groups of one to four rows: a warp has one output,
// of gate and up both, and its lanes stride over k.

#include "expert_service/kernels/cuda/ffn_stages.h"
#include "expert_service/kernels/cuda/fragment_layout.h"
#include "expert_service/kernels/cuda/intrinsics.cuh"
#include "expert_service/kernels/cuda/launch.h"
#include "expert_service/kernels/cuda/silu.cuh"

namespace expertmesh::expert {
namespace {

constexpr int kWarps = 8;
// Chunks of eight weights that a lane has loaded ahead.
constexpr int kAhead = 4;

template <Product kProduct>
inline constexpr int kMatrices = kProduct == Product::kGateUp ? 2 : 1;

// Adds what eight weights make of eight elements of a row.
__device__ __forceinline__ void AddChunk(const uint4& w, const uint4& x,
                                         float& sum) {
  const uint32_t weights[4] = {w.x, w.y, w.z, w.w};
  const uint32_t values[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum = fmaf(FloatOf(weights[i] << 16), FloatOf(values[i] << 16), sum);
    sum = fmaf(FloatOf(weights[i] & 0xffff0000u),
               FloatOf(values[i] & 0xffff0000u), sum);
  }
}

// Sums of the rows with one output of each matrix, in all lanes.
//   weights  the output's, of each matrix
//   x        the rows, one behind the other
template <int kRows, int kCount>
__device__ __forceinline__ void SumRows(const uint4* const (&weights)[kCount],
                                        const uint4* x, int chunks,
                                        float (&sums)[kCount][kRows]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < kCount; ++m) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[m][r] = 0.0f;
  }
  for (int begin = lane; begin < chunks; begin += 32 * kAhead) {
    uint4 ahead[kAhead][kCount];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i * 32 >= chunks) continue;
#pragma unroll
      for (int m = 0; m < kCount; ++m) {
        ahead[i][m] = Load16Once(weights[m] + begin + i * 32);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i * 32 >= chunks) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4 row =
            Load16(x + static_cast<int64_t>(r) * chunks + begin + i * 32);
#pragma unroll
        for (int m = 0; m < kCount; ++m) {
          AddChunk(ahead[i][m], row, sums[m][r]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kCount; ++m) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      for (int mask = 16; mask > 0; mask /= 2) {
        sums[m][r] += __shfl_xor_sync(0xffffffffu, sums[m][r], mask);
      }
    }
  }
}

template <Product kProduct>
__device__ __forceinline__ void Store(const ProductArgs& args, int64_t row,
                                      int output, float first, float second) {
  if constexpr (kProduct == Product::kGateUp) {
    if (args.row_scales != nullptr) {
      first *= args.row_scales[row];
      second *= args.row_scales[row];
    }
    static_cast<uint16_t*>(args.out)[row * PaddedExtent(args.n) + output] =
        Bf16BitsOf(Silu(first) * second);
  } else if (output < args.n) {
    const int64_t at = row * args.n + output;
    if (args.is_f32) {
      static_cast<float*>(args.out)[at] = first;
    } else {
      static_cast<uint16_t*>(args.out)[at] = Bf16BitsOf(first);
    }
  }
}

template <Product kProduct, int kRows>
__device__ __forceinline__ void RunTile(const ProductArgs& args,
                                        const RowTile& tile, int output) {
  constexpr int kCount = kMatrices<kProduct>;
  const CudaExpertView& expert = args.experts[tile.group];
  const int chunks = static_cast<int>(PaddedExtent(args.k) / 8);
  const auto weights_of = [&](const CudaMatrix& matrix) {
    return static_cast<const uint4*>(matrix.fragments) +
           static_cast<int64_t>(output) * chunks;
  };
  const uint4* weights[kCount];
  if constexpr (kProduct == Product::kGateUp) {
    weights[0] = weights_of(expert.gate);
    weights[1] = weights_of(expert.up);
  } else {
    weights[0] = weights_of(expert.down);
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = tile.first_row;
  float sums[kCount][kRows];
  SumRows<kRows>(weights, static_cast<const uint4*>(args.x) + row * chunks,
                 chunks, sums);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (lane != r) continue;
    Store<kProduct>(args, row + r, output, sums[0][r], sums[kCount - 1][r]);
  }
}

template <Product kProduct>
__global__ void __launch_bounds__(32 * kWarps)
    FewRows(ProductArgs args, int blocks_per_tile) {
  const RowTile tile = args.tiles[blockIdx.x / blocks_per_tile];
  const int output = static_cast<int>(blockIdx.x % blocks_per_tile) * kWarps +
                     static_cast<int>(threadIdx.x) / 32;
  switch (tile.num_rows) {
    case 1:
      return RunTile<kProduct, 1>(args, tile, output);
    case 2:
      return RunTile<kProduct, 2>(args, tile, output);
    case 3:
      return RunTile<kProduct, 3>(args, tile, output);
    case kFewRows:
      return RunTile<kProduct, kFewRows>(args, tile, output);
  }
}

}  // namespace

cudaError_t LaunchFewRows(const ProductArgs& args, Product product,
                          cudaStream_t stream) {
  // Padded weights are zeros, which padded elements of h are to be.
  const int blocks_per_tile = static_cast<int>(PaddedExtent(args.n)) / kWarps;
  const int64_t blocks = static_cast<int64_t>(args.num_tiles) * blocks_per_tile;
  return Launch(product == Product::kGateUp ? FewRows<Product::kGateUp>
                                            : FewRows<Product::kDown>,
                blocks, 32 * kWarps, 0, stream, args, blocks_per_tile);
}

}  // namespace expertmesh::expert
