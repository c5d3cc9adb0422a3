#pragma once

// What both kernels of tensor cores share: which weights a warp reads together,
// and what becomes of sums.

#include "expert_service/kernels/cuda/ffn_stages.h"
#include "expert_service/kernels/cuda/silu.cuh"
#include "expert_service/kernels/cuda/weight_tile.cuh"

namespace expertmesh::expert {

// Strips that a warp multiplies with the same rows: of gate and up the same
// one, of down two neighbours.
inline constexpr int kStrips = 2;

// Such pairs of a matrix of n outputs.
inline int NumStripPairs(Product product, int64_t n) {
  const int64_t strips = PaddedExtent(n) / kStripOutputs;
  return static_cast<int>(product == Product::kGateUp ? strips
                                                      : strips / kStrips);
}

template <Product kProduct>
__device__ __forceinline__ const CudaMatrix& MatrixOf(
    const CudaExpertView& expert, int strip) {
  if constexpr (kProduct == Product::kDown) return expert.down;
  return strip == 0 ? expert.gate : expert.up;
}

// Output of the first of a pair's strips.
template <Product kProduct>
__device__ __forceinline__ int FirstOutput(int pair, int strip) {
  if constexpr (kProduct == Product::kGateUp) return pair * kStripOutputs;
  return (pair * kStrips + strip) * kStripOutputs;
}

template <WeightFormat kFormat>
__device__ __forceinline__ float Scaled(float sum, const CudaMatrix& matrix,
                                        int output) {
  if constexpr (HasScales(kFormat)) return sum * matrix.scales[output];
  return sum;
}

// The outputs of one row where both strips' sums are known: `output` counts
// within the strip.
template <WeightFormat kFormat, Product kProduct>
__device__ __forceinline__ void StoreOutputs(const ProductArgs& args,
                                             const CudaExpertView& expert,
                                             int64_t row, int pair, int output,
                                             float first, float second) {
  if constexpr (kProduct == Product::kGateUp) {
    const int column = FirstOutput<kProduct>(pair, 0) + output;
    float gate = Scaled<kFormat>(first, expert.gate, column);
    float up = Scaled<kFormat>(second, expert.up, column);
    if (args.row_scales != nullptr) {
      gate *= args.row_scales[row];
      up *= args.row_scales[row];
    }
    // Also behind n, zeros that the next product finds there.
    static_cast<uint16_t*>(args.out)[row * PaddedExtent(args.n) + column] =
        Bf16BitsOf(column < args.n ? Silu(gate) * up : 0.0f);
  } else {
    const float sums[kStrips] = {first, second};
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      const int column = FirstOutput<kProduct>(pair, strip) + output;
      if (column >= args.n) continue;
      const float y = Scaled<kFormat>(sums[strip], expert.down, column);
      const int64_t at = row * args.n + column;
      if (args.is_f32) {
        static_cast<float*>(args.out)[at] = y;
      } else {
        static_cast<uint16_t*>(args.out)[at] = Bf16BitsOf(y);
      }
    }
  }
}

// Calls call<format>(), of the formats for tensor cores.
template <typename Call>
cudaError_t WithTensorFormat(WeightFormat format, const Call& call) {
  switch (format) {
    case WeightFormat::kBF16:
      return call.template operator()<WeightFormat::kBF16>();
    case WeightFormat::kInt8:
      return call.template operator()<WeightFormat::kInt8>();
    case WeightFormat::kInt4:
      return call.template operator()<WeightFormat::kInt4>();
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace expertmesh::expert
