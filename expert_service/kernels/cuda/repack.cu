// Weights into fragments: a thread for each four bytes of them.

#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "expert_service/kernels/cuda/fragment_layout.h"
#include "expert_service/kernels/cuda/intrinsics.cuh"
#include "expert_service/kernels/cuda/launch.h"
#include "services/linalg/isa/panel_layout.h"

namespace expertmesh::expert {
namespace {

constexpr int kThreads = 256;

// A matrix as it comes.
struct Source {
  const uint8_t* data;
  DType dtype;  // of float formats
  int64_t n;
  int64_t k;
  int64_t panel_bytes;  // 0: a tensor [n, k]
};

// An element's bits in the type of `format`, a float's.
__device__ __forceinline__ uint32_t FloatBits(const Source& from, int64_t n,
                                              int64_t k, WeightFormat format) {
  const bool is_wide = from.dtype == DType::kF32;
  const uint8_t* data = from.data;
  int64_t i = n * from.k + k;
  if (from.panel_bytes != 0) {
    data += n / kPanelWidth * from.panel_bytes;
    const int64_t column = n % kPanelWidth;
    i = is_wide ? k * kPanelWidth + column
                : (k / 2 * kPanelWidth + column) * 2 + k % 2;
  }
  if (is_wide) {
    const float value = reinterpret_cast<const float*>(data)[i];
    return format == WeightFormat::kF32 ? BitsOf(value) : Bf16BitsOf(value);
  }
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[i];
  const bool is_bf16 = from.dtype == DType::kBF16;
  if (format == (is_bf16 ? WeightFormat::kBF16 : WeightFormat::kF16)) {
    return bits;
  }
  const float value = is_bf16 ? Bf16BitsToF32(bits) : F16BitsToF32(bits);
  return format == WeightFormat::kF32 ? BitsOf(value) : Bf16BitsOf(value);
}

// The panel that output n is in, behind its header.
__device__ __forceinline__ const uint8_t* CodesOf(const Source& from,
                                                  int64_t n) {
  return from.data + n / kPanelWidth * from.panel_bytes +
         sizeof(QuantizedPanelHeader);
}

// The multiplier of an int4 weight, and 16 where its zero is 7.
__device__ __forceinline__ uint32_t StepAt(const Source& from, int64_t n,
                                           int64_t k) {
  return CodesOf(from, n)[k / 64 * kInt4BlockBytes +
                          k % 64 / kInt4Group * kPanelWidth + n % kPanelWidth];
}

// Panels are padded as fragments are.
template <WeightFormat kFormat>
__device__ __forceinline__ uint32_t CodeAt(const Source& from, int64_t n,
                                           int64_t k) {
  const uint8_t* const codes = CodesOf(from, n);
  const int64_t column = n % kPanelWidth;
  if constexpr (kFormat == WeightFormat::kInt8) {
    return codes[(k / 4 * kPanelWidth + column) * 4 + k % 4];
  } else {
    const uint32_t pair =
        codes[k / 64 * kInt4BlockBytes + kInt4StepBytes +
              (k % 64 / 8 * kPanelWidth + column) * 4 + k % 4];
    const uint32_t code = k % 8 < 4 ? pair % 16 : pair / 16;
    return StepAt(from, n, k) < 16 ? code : 15 - code;
  }
}

__global__ void __launch_bounds__(kThreads)
    RepackPlain(Source from, WeightFormat format, void* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= from.n * from.k) return;
  const uint32_t bits = FloatBits(from, i / from.k, i % from.k, format);
  if (format == WeightFormat::kF32) {
    static_cast<uint32_t*>(to)[i] = bits;
  } else {
    static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(bits);
  }
}

// bf16 [padded n, padded k]; a thread for each.
__global__ void __launch_bounds__(kThreads)
    RepackRows(Source from, uint16_t* to) {
  const int64_t padded = PaddedExtent(from.k);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= PaddedExtent(from.n) * padded) return;
  const int64_t n = i / padded;
  const int64_t k = i % padded;
  to[i] =
      n < from.n && k < from.k
          ? static_cast<uint16_t>(FloatBits(from, n, k, WeightFormat::kBF16))
          : 0;
}

// Calls element(n, k, bit): where in the word of that number each of its
// elements goes.
template <WeightFormat kFormat, typename Element>
__device__ __forceinline__ void ForElements(int64_t word, int64_t k_tiles,
                                            const Element& element) {
  constexpr int kTileWords = TileBytes(kFormat) / 4;
  const int64_t tile = word / kTileWords;
  const int at = static_cast<int>(word % kTileWords);
  const int64_t n = tile / k_tiles * kStripOutputs;
  const int64_t k = tile % k_tiles * kTileK;
  const int lane = at / 4 % 32;
  const auto visit = [&](int mma, int reg, int half, int bit) {
    const TileElement e = ElementOf(mma, lane, reg, half);
    element(n + e.output, k + e.k, bit);
  };
  for (int half = 0; half < 2; ++half) {
    if constexpr (kFormat == WeightFormat::kBF16) {
      visit(at / 128, at % 4, half, half * 16);
    } else if constexpr (kFormat == WeightFormat::kInt8) {
      for (int odd = 0; odd < 2; ++odd) {
        visit(at / 128 * 2 + at % 4 / 2, at % 2 * 2 + odd, half,
              half * 16 + odd * 8);
      }
    } else {
      for (int reg = 0; reg < 4; ++reg) {
        visit(at % 4, reg, half, half * 16 + reg * 4);
      }
    }
  }
}

template <WeightFormat kFormat>
__global__ void __launch_bounds__(kThreads)
    RepackTiles(Source from, int64_t num_words, uint32_t* to) {
  const int64_t word =
      static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (word >= num_words) return;
  uint32_t bits = 0;
  ForElements<kFormat>(word, PaddedExtent(from.k) / kTileK,
                       [&](int64_t n, int64_t k, int bit) {
                         if constexpr (kFormat == WeightFormat::kBF16) {
                           if (n >= from.n || k >= from.k) return;
                           bits |= FloatBits(from, n, k, kFormat) << bit;
                         } else {
                           bits |= CodeAt<kFormat>(from, n, k) << bit;
                         }
                       });
  to[word] = bits;
}

// A thread for each multiplier.
__global__ void __launch_bounds__(kThreads)
    RepackSteps(Source from, int64_t num_steps, int8_t* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= num_steps) return;
  const int64_t k_tiles = PaddedExtent(from.k) / kTileK;
  const int64_t tile = i / kStepBytes;
  const int at = static_cast<int>(i % kStepBytes);  // [8 g][2 of k][2 outputs]
  const uint32_t step =
      StepAt(from, tile / k_tiles * kStripOutputs + at / 4 + at % 2 * 8,
             tile % k_tiles * kTileK + at / 2 % 2 * kInt4Group);
  const int multiplier = static_cast<int>(step % 16);
  to[i] = static_cast<int8_t>(step < 16 ? multiplier : -multiplier);
}

__global__ void __launch_bounds__(kThreads)
    RepackScales(Source from, float* to) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= PaddedExtent(from.n)) return;
  to[n] = reinterpret_cast<const float*>(
      from.data + n / kPanelWidth * from.panel_bytes)[n % kPanelWidth];
}

int64_t BlocksFor(int64_t threads) {
  return (threads + kThreads - 1) / kThreads;
}

template <WeightFormat kFormat>
cudaError_t LaunchTiles(const Source& from, void* to, cudaStream_t stream) {
  const int64_t words = PartsOf(from.n, from.k, kFormat).steps / 4;
  return Launch(&RepackTiles<kFormat>, BlocksFor(words), kThreads, 0, stream,
                from, words, static_cast<uint32_t*>(to));
}

cudaError_t LaunchFloats(const Source& from, WeightFormat format,
                         WeightOrder order, void* to, cudaStream_t stream) {
  if (order == WeightOrder::kRows) {
    return Launch(&RepackRows,
                  BlocksFor(PaddedExtent(from.n) * PaddedExtent(from.k)),
                  kThreads, 0, stream, from, static_cast<uint16_t*>(to));
  }
  if (format == WeightFormat::kBF16) {
    return LaunchTiles<WeightFormat::kBF16>(from, to, stream);
  }
  return Launch(&RepackPlain, BlocksFor(from.n * from.k), kThreads, 0, stream,
                from, format, to);
}

cudaError_t LaunchQuantized(const Source& from, WeightFormat format, void* to,
                            cudaStream_t stream) {
  const MatrixParts parts = PartsOf(from.n, from.k, format);
  auto* const bytes = static_cast<std::byte*>(to);
  const bool is_int4 = format == WeightFormat::kInt4;
  cudaError_t error = is_int4
                          ? LaunchTiles<WeightFormat::kInt4>(from, to, stream)
                          : LaunchTiles<WeightFormat::kInt8>(from, to, stream);
  if (error == cudaSuccess && is_int4) {
    const int64_t steps = parts.scales - parts.steps;
    error = Launch(&RepackSteps, BlocksFor(steps), kThreads, 0, stream, from,
                   steps, reinterpret_cast<int8_t*>(bytes + parts.steps));
  }
  if (error != cudaSuccess) return error;
  return Launch(&RepackScales, BlocksFor(PaddedExtent(from.n)), kThreads, 0,
                stream, from, reinterpret_cast<float*>(bytes + parts.scales));
}

}  // namespace

cudaError_t LaunchRepackTensor(const void* from, DType dtype, int64_t n,
                               int64_t k, WeightFormat format,
                               WeightOrder order, void* to,
                               cudaStream_t stream) {
  const bool is_possible =
      format == WeightFormat::kF32 || format == WeightFormat::kBF16 ||
      (format == WeightFormat::kF16 && dtype == DType::kF16);
  if (!is_possible || dtype == DType::kInt8) return cudaErrorInvalidValue;
  return LaunchFloats({static_cast<const uint8_t*>(from), dtype, n, k, 0},
                      format, order, to, stream);
}

cudaError_t LaunchRepackPanels(const void* from, int64_t n, int64_t k,
                               WeightFormat format, WeightOrder order, void* to,
                               cudaStream_t stream) {
  Source source = {static_cast<const uint8_t*>(from), DType::kF32, n, k,
                   PackedBytes(kPanelWidth, k, format)};
  if (HasScales(format)) return LaunchQuantized(source, format, to, stream);
  if (format == WeightFormat::kBF16) source.dtype = DType::kBF16;
  if (format == WeightFormat::kF16) source.dtype = DType::kF16;
  return LaunchFloats(source, format, order, to, stream);
}

}  // namespace expertmesh::expert
