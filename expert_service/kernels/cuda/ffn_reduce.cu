// Outputs that go back added up, and alone. A block has one of either.

#include "expert_service/kernels/cuda/ffn_stages.h"
#include "expert_service/kernels/cuda/ffn_tables.h"
#include "expert_service/kernels/cuda/intrinsics.cuh"
#include "expert_service/kernels/cuda/launch.h"
#include "expert_service/kernels/cuda/row_reader.cuh"

namespace expertmesh::expert {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void CopyBytes(const uint8_t* from, int64_t bytes,
                                          uint8_t* to) {
  for (int64_t i = threadIdx.x; i < bytes; i += kThreads) to[i] = from[i];
}

template <DType kType>
__device__ __forceinline__ void AddUp(const ReductionTable& table, uint32_t sum,
                                      const void* rows, int64_t n, float* to) {
  const uint32_t begin = table.sum_offsets()[sum];
  const uint32_t end = table.sum_offsets()[sum + 1];
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    float total = 0.0f;
    for (uint32_t at = begin; at < end; ++at) {
      const float value = RowElement<kType>(rows, table.sum_rows()[at], n, i);
      total += table.sum_weights()[at] * value;  // each rounded
    }
    to[i] = total;
  }
}

template <DType kType>
__global__ void __launch_bounds__(kThreads)
    ReduceRows(const void* words, int64_t room_rows, const void* rows,
               int64_t n, int64_t row_bytes, uint8_t* out) {
  const ReductionTable table(words, room_rows);
  const uint32_t num_lone = table.num_lone();
  const int64_t index = blockIdx.x;
  if (index < num_lone) {
    const auto* const from = static_cast<const uint8_t*>(rows);
    CopyBytes(from + table.lone_rows()[index] * row_bytes, row_bytes,
              out + index * row_bytes);
  } else if (index < num_lone + table.num_sums()) {
    auto* const sums =
        reinterpret_cast<float*>(out + (num_lone * row_bytes + 63) / 64 * 64);
    const auto sum = static_cast<uint32_t>(index - num_lone);
    AddUp<kType>(table, sum, rows, n, sums + sum * n);
  }
}

}  // namespace

cudaError_t LaunchReduceRows(const void* table, int64_t room_rows,
                             const void* rows, DType dtype, int64_t n,
                             void* out, cudaStream_t stream) {
  const auto launch = [&](auto* kernel) {
    return Launch(kernel, room_rows, kThreads, 0, stream, table, room_rows,
                  rows, n, static_cast<int64_t>(RowBytes(dtype, n)),
                  static_cast<uint8_t*>(out));
  };
  switch (dtype) {
    case DType::kF32:
      return launch(&ReduceRows<DType::kF32>);
    case DType::kBF16:
      return launch(&ReduceRows<DType::kBF16>);
    case DType::kInt8:
      return launch(&ReduceRows<DType::kInt8>);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace expertmesh::expert
