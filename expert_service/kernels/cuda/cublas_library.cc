#include "expert_service/kernels/cuda/cublas_library.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"

namespace expertmesh::expert {

absl::StatusOr<CublasFunctions> LoadCublas() {
  const std::string name = absl::StrCat("libcublas.so.", CUDART_VERSION / 1000);
  // Needed by it, and perhaps to be found from this binary alone.
  dlopen(absl::StrCat("libcublasLt.so.", CUDART_VERSION / 1000).c_str(),
         RTLD_NOW | RTLD_LOCAL);
  // Stays loaded: kernels of it may run until the process ends.
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuBLAS cannot be loaded: ", dlerror()));
  }
  CublasFunctions cublas;
  const auto find = [&](const char* function, auto* to) {
    *to = reinterpret_cast<std::remove_pointer_t<decltype(to)>>(
        dlsym(library, function));
    return *to != nullptr;
  };
  if (find("cublasCreate_v2", &cublas.create) &&
      find("cublasDestroy_v2", &cublas.destroy) &&
      find("cublasSetStream_v2", &cublas.set_stream) &&
      find("cublasSetWorkspace_v2", &cublas.set_workspace) &&
      find("cublasSetMathMode", &cublas.set_math_mode) &&
      find("cublasGemmGroupedBatchedEx", &cublas.gemm_grouped)) {
    return cublas;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      name,
      " has no grouped products of bf16: cuBLAS 12.5 or newer is needed"));
}

}  // namespace expertmesh::expert
