// For binaries without CUDA.

#include "expert_service/kernels/cuda/cuda_backend.h"

namespace expertmesh::expert {

absl::StatusOr<std::unique_ptr<CudaBackend>> OpenCudaBackend(
    const CudaBackendOptions& options) {
  return absl::FailedPreconditionError(
      "no CUDA device: this binary was built without CUDA");
}

}  // namespace expertmesh::expert
