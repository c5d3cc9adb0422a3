// Rows from what travels to what is multiplied, and back. A block has one row.

#include "expert_service/kernels/cuda/ffn_stages.h"
#include "expert_service/kernels/cuda/fragment_layout.h"
#include "expert_service/kernels/cuda/intrinsics.cuh"
#include "expert_service/kernels/cuda/launch.h"
#include "expert_service/kernels/cuda/row_reader.cuh"

namespace expertmesh::expert {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    RowsToBf16(const void* x, DType dtype, int64_t n, uint16_t* out,
               float* scales) {
  const int64_t row = blockIdx.x;
  const int64_t padded = PaddedExtent(n);
  for (int64_t i = threadIdx.x; i < padded; i += kThreads) {
    uint16_t value = 0;
    if (i < n) {
      if (dtype == DType::kBF16) {
        value = static_cast<const uint16_t*>(x)[row * n + i];
      } else if (dtype == DType::kF32) {
        value = Bf16BitsOf(static_cast<const float*>(x)[row * n + i]);
      } else {
        value = Bf16BitsOf(CodeAt(CodedRowAt(x, row, n), i));
      }
    }
    out[row * padded + i] = value;
  }
  if (dtype == DType::kInt8 && threadIdx.x == 0) {
    scales[row] = ScaleOf(CodedRowAt(x, row, n));
  }
}

__global__ void __launch_bounds__(kThreads)
    RowsToF32(const void* x, DType dtype, int64_t n, float* out) {
  const int64_t row = blockIdx.x;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    if (dtype == DType::kBF16) {
      out[row * n + i] =
          Bf16BitsToF32(static_cast<const uint16_t*>(x)[row * n + i]);
    } else if (dtype == DType::kF32) {
      out[row * n + i] = static_cast<const float*>(x)[row * n + i];
    } else {
      const uint8_t* const coded = CodedRowAt(x, row, n);
      out[row * n + i] = ScaleOf(coded) * CodeAt(coded, i);
    }
  }
}

// The largest magnitude of a row, NaN above all, in all threads.
__device__ __forceinline__ float MaxAbsOfRow(const float* x, int64_t n) {
  __shared__ uint32_t of_warps[kThreads / 32];
  uint32_t max_bits = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    max_bits = max(max_bits, BitsOf(x[i]) & 0x7fffffffu);
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    max_bits = max(max_bits, __shfl_xor_sync(0xffffffffu, max_bits, mask));
  }
  of_warps[threadIdx.x / 32] = max_bits;
  __syncthreads();
  for (const uint32_t bits : of_warps) max_bits = max(max_bits, bits);
  return FloatOf(max_bits);
}

__global__ void __launch_bounds__(kThreads)
    QuantizeRows(const float* x, int64_t n, uint8_t* out) {
  const float* const from = x + blockIdx.x * n;
  uint8_t* const to = out + blockIdx.x * (4 + n);
  const float max_abs = MaxAbsOfRow(from, n);
  const bool is_finite = max_abs <= 3.4028235e38f;
  // Below, too small to divide by: as good as zero.
  const bool is_plain = is_finite && max_abs >= 1e-30f;
  const float factor = is_plain ? 127.0f / max_abs : 0.0f;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    to[4 + i] = static_cast<uint8_t>(
        is_plain ? static_cast<int>(rintf(from[i] * factor)) : 0);
  }
  if (threadIdx.x < 4) {
    constexpr uint32_t kNan = 0x7fc00000u;
    const uint32_t bits = is_plain    ? BitsOf(max_abs / 127.0f)
                          : is_finite ? 0u
                                      : kNan;
    to[threadIdx.x] = static_cast<uint8_t>(bits >> (8 * threadIdx.x));
  }
}

}  // namespace

cudaError_t LaunchRowsToBf16(const void* x, DType dtype, int64_t num_rows,
                             int64_t n, uint16_t* out, float* scales,
                             cudaStream_t stream) {
  return Launch(&RowsToBf16, num_rows, kThreads, 0, stream, x, dtype, n, out,
                scales);
}

cudaError_t LaunchRowsToF32(const void* x, DType dtype, int64_t num_rows,
                            int64_t n, float* out, cudaStream_t stream) {
  return Launch(&RowsToF32, num_rows, kThreads, 0, stream, x, dtype, n, out);
}

cudaError_t LaunchQuantizeRows(const float* x, int64_t num_rows, int64_t n,
                               void* out, cudaStream_t stream) {
  return Launch(&QuantizeRows, num_rows, kThreads, 0, stream, x, n,
                static_cast<uint8_t*>(out));
}

}  // namespace expertmesh::expert
