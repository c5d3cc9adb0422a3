// f32 and f16 weights, in f32 and without tensor cores: simple rather than
// fast. A warp has one output and takes some rows at a time; its lanes stride
// over k, and what they have is added in a tree.

#include "expert_service/kernels/cuda/ffn_stages.h"
#include "expert_service/kernels/cuda/intrinsics.cuh"
#include "expert_service/kernels/cuda/launch.h"

namespace expertmesh::expert {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 4;  // at a time

__device__ __forceinline__ float WeightAt(const float* weights, int64_t i) {
  return weights[i];
}
__device__ __forceinline__ float WeightAt(const uint16_t* weights, int64_t i) {
  return F16BitsToF32(weights[i]);
}

// Sums of `kRows` rows with one output of a matrix, in all lanes.
//   x  the rows, k apart; from num_rows on, the last once more
template <typename Weight>
__device__ __forceinline__ void SumRows(const CudaMatrix& matrix, int output,
                                        const float* x, int num_rows, int64_t k,
                                        float (&sums)[kRows]) {
  const Weight* const weights =
      static_cast<const Weight*>(matrix.fragments) + output * k;
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] = 0.0f;
  for (int64_t i = threadIdx.x % 32; i < k; i += 32) {
    const float weight = WeightAt(weights, i);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sums[r] = fmaf(weight, x[min(r, num_rows - 1) * k + i], sums[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int mask = 16; mask > 0; mask /= 2) {
      sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], mask);
    }
  }
}

template <Product kProduct>
__device__ __forceinline__ void Store(const ProductArgs& args, int64_t at,
                                      float value) {
  if (kProduct == Product::kGateUp) {
    static_cast<float*>(args.out)[at] =
        args.rounds_h ? Bf16BitsToF32(Bf16BitsOf(value)) : value;
  } else if (args.is_f32) {
    static_cast<float*>(args.out)[at] = value;
  } else {
    static_cast<uint16_t*>(args.out)[at] = Bf16BitsOf(value);
  }
}

template <typename Weight, Product kProduct>
__global__ void __launch_bounds__(32 * kWarps)
    PlainTiles(ProductArgs args, int blocks_per_tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const RowTile tile = args.tiles[blockIdx.x / blocks_per_tile];
  const int output = static_cast<int>(blockIdx.x % blocks_per_tile) * kWarps +
                     static_cast<int>(threadIdx.x) / 32;
  if (output >= args.n) return;
  const CudaExpertView& expert = args.experts[tile.group];
  for (int begin = 0; begin < tile.num_rows; begin += kRows) {
    const int num_rows = min(kRows, tile.num_rows - begin);
    const int64_t row = tile.first_row + begin;
    const float* const x = static_cast<const float*>(args.x) + row * args.k;
    float sums[kRows];
    if constexpr (kProduct == Product::kGateUp) {
      float up[kRows];
      SumRows<Weight>(expert.gate, output, x, num_rows, args.k, sums);
      SumRows<Weight>(expert.up, output, x, num_rows, args.k, up);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r] = sums[r] / (1.0f + expf(-sums[r])) * up[r];
      }
    } else {
      SumRows<Weight>(expert.down, output, x, num_rows, args.k, sums);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (lane != r || r >= num_rows) continue;
      Store<kProduct>(args, (row + r) * args.n + output, sums[r]);
    }
  }
}

}  // namespace

cudaError_t LaunchPlainTiles(const ProductArgs& args, Product product,
                             WeightFormat format, cudaStream_t stream) {
  const int blocks_per_tile = (args.n + kWarps - 1) / kWarps;
  const int64_t blocks = static_cast<int64_t>(args.num_tiles) * blocks_per_tile;
  const auto launch = [&](auto* kernel) {
    return Launch(kernel, blocks, 32 * kWarps, 0, stream, args,
                  blocks_per_tile);
  };
  const bool is_f32 = format == WeightFormat::kF32;
  if (!is_f32 && format != WeightFormat::kF16) return cudaErrorInvalidValue;
  if (product == Product::kGateUp) {
    return launch(is_f32 ? PlainTiles<float, Product::kGateUp>
                         : PlainTiles<uint16_t, Product::kGateUp>);
  }
  return launch(is_f32 ? PlainTiles<float, Product::kDown>
                       : PlainTiles<uint16_t, Product::kDown>);
}

}  // namespace expertmesh::expert
