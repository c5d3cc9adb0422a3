#pragma once

#include <cuda_runtime.h>

namespace expertmesh::expert {

__device__ __forceinline__ float Silu(float x) { return x / (1.0f + expf(-x)); }

}  // namespace expertmesh::expert
