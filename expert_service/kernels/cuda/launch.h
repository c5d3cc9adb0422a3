#pragma once

// Starts kernels; for .cu files only.

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace expertmesh::expert {

// Queues kernel(args...) in `stream`: a block of `threads` with `shared_bytes`
// for each of `blocks`, which may be none. Arguments become the parameters'
// types.
#if defined(EXPERTMESH_CUDA_EMULATION)

template <typename... Params>
cudaError_t Launch(void (*kernel)(Params...), int64_t blocks, int threads,
                   size_t shared_bytes, cudaStream_t stream,
                   std::type_identity_t<Params>... args) {
  if (blocks == 0) return cudaSuccess;
  return cuda_emulation::Launch(static_cast<unsigned>(blocks),
                                static_cast<unsigned>(threads), shared_bytes,
                                stream, [=] { kernel(args...); });
}

inline std::byte* DynamicShared() { return cuda_emulation::DynamicShared(); }

#else

// A kernel may have less than this without asking.
inline constexpr size_t kFreeSharedBytes = 48 << 10;

template <typename... Params>
cudaError_t Launch(void (*kernel)(Params...), int64_t blocks, int threads,
                   size_t shared_bytes, cudaStream_t stream,
                   std::type_identity_t<Params>... args) {
  if (blocks == 0) return cudaSuccess;
  if (shared_bytes > kFreeSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  // Unlike <<<>>> it says what became of this launch, not of an older call.
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// The `shared_bytes` of the running block.
__device__ __forceinline__ std::byte* DynamicShared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  return reinterpret_cast<std::byte*>(dynamic_shared);
}

#endif

}  // namespace expertmesh::expert
