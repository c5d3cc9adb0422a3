#pragma once

// Products of many sizes by one call to cuBLAS.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "expert_service/kernels/cuda/cublas_library.h"
#include "expert_service/kernels/cuda/cuda_memory.h"
#include "expert_service/kernels/cuda/ffn_tables.h"

namespace expertmesh::expert {

// Y = X Wᵀ for each group: X [rows, k], W [n, k], Y [rows, n], all bf16, row
// after row, 16-byte aligned; sums in f32. The order of sums is cuBLAS's choice
// by the sizes. One thread.
class GroupedGemm {
 public:
  // What one takes of the device's memory.
  static int64_t DeviceBytes();
  // For a stream. Errors: those of LoadCublas and of CUDA.
  static absl::StatusOr<std::unique_ptr<GroupedGemm>> Create(
      cudaStream_t stream, int64_t max_groups);
  ~GroupedGemm();

  struct Products {
    const RowTile* groups = nullptr;  // host memory, [num_groups]: their rows
    int num_groups = 0;
    int per_group = 1;  // products with the same sizes
    int n = 0;
    int k = 0;
    // Device memory, [num_groups · per_group].
    const void* const* w = nullptr;
    const void* const* x = nullptr;
    void* const* y = nullptr;
  };
  // Queues them. Errors: cudaErrorUnknown, with a line in the log.
  cudaError_t Launch(const Products& products);

 private:
  GroupedGemm() = default;

  CublasFunctions cublas_;
  void* handle_ = nullptr;
  DeviceBuffer workspace_;
  // Of each group.
  std::vector<int> transposed_, plain_, n_, rows_, k_, sizes_;
  std::vector<float> ones_, zeros_;
};

}  // namespace expertmesh::expert
