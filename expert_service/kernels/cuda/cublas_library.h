#pragma once

// As much of cuBLAS as is used. The library is loaded at run time: it is large,
// and only --numerics=fast needs it.

#include <cstddef>

#include "absl/status/statusor.h"

namespace expertmesh::expert {

// Of cublas_v2.h, which builds need not have. All give 0, or a status.
struct CublasFunctions {
  int (*create)(void** handle) = nullptr;
  int (*destroy)(void* handle) = nullptr;
  int (*set_stream)(void* handle, void* stream) = nullptr;
  int (*set_workspace)(void* handle, void* workspace, size_t bytes) = nullptr;
  int (*set_math_mode)(void* handle, int mode) = nullptr;
  // Arrays of sizes are host memory, those of matrices device memory.
  int (*gemm_grouped)(void* handle, const int* trans_a, const int* trans_b,
                      const int* m, const int* n, const int* k,
                      const void* alpha, const void* const* a, int a_type,
                      const int* lda, const void* const* b, int b_type,
                      const int* ldb, const void* beta, void* const* c,
                      int c_type, const int* ldc, int group_count,
                      const int* group_size, int compute_type) = nullptr;
};

// Errors: FAILED_PRECONDITION where the library of the runtime's major version
// is not found, or is older than 12.5.
absl::StatusOr<CublasFunctions> LoadCublas();

}  // namespace expertmesh::expert
