#pragma once

// Elements of rows as they travel (services/linalg/activation_row.h).

#include "expert_service/kernels/cuda/intrinsics.cuh"
#include "services/core/dtype.h"

namespace expertmesh::expert {

// The scale in front of the codes of a row of int8, at any address.
__device__ __forceinline__ float ScaleOf(const uint8_t* row) {
  return FloatOf(static_cast<uint32_t>(row[0]) |
                 static_cast<uint32_t>(row[1]) << 8 |
                 static_cast<uint32_t>(row[2]) << 16 |
                 static_cast<uint32_t>(row[3]) << 24);
}

__device__ __forceinline__ const uint8_t* CodedRowAt(const void* x, int64_t row,
                                                     int64_t n) {
  return static_cast<const uint8_t*>(x) + row * (4 + n);
}

__device__ __forceinline__ float CodeAt(const uint8_t* row, int64_t i) {
  return static_cast<float>(static_cast<int8_t>(row[4 + i]));
}

// Element i of a row of [rows, n], as f32.
template <DType kType>
__device__ __forceinline__ float RowElement(const void* rows, int64_t row,
                                            int64_t n, int64_t i) {
  if constexpr (kType == DType::kF32) {
    return static_cast<const float*>(rows)[row * n + i];
  } else if constexpr (kType == DType::kBF16) {
    return Bf16BitsToF32(static_cast<const uint16_t*>(rows)[row * n + i]);
  } else {
    const uint8_t* const coded = CodedRowAt(rows, row, n);
    return ScaleOf(coded) * CodeAt(coded, i);
  }
}

}  // namespace expertmesh::expert
