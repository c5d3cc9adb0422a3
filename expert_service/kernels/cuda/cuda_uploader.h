#pragma once

// The way of weights to a device.

#include <array>
#include <cstddef>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "expert_service/kernels/cuda/cuda_memory.h"
#include "services/core/mutex.h"

namespace expertmesh::expert {

// Copies from memory that is not pinned, such as mapped files, by way of two
// small pinned buffers in turn: one is filled while the other is sent, so that
// nothing of a checkpoint is resident twice. On the device the largest upload's
// buffer is kept, since to free memory there is to wait for all kernels.
// Thread-safe; callers wait for each other, since the bus is what takes long.
class CudaUploader {
 public:
  // Errors: as of allocating.
  static absl::StatusOr<std::unique_ptr<CudaUploader>> Create(int device);

  // Copies `bytes` to a buffer on the device that is theirs until `launch` is
  // done, has `launch` queue what uses it, and waits for that.
  // Errors: those of CUDA.
  absl::Status Upload(const std::byte* from, int64_t bytes,
                      absl::FunctionRef<cudaError_t(const std::byte* uploaded,
                                                    cudaStream_t stream)>
                          launch);

 private:
  struct Part {
    std::shared_ptr<std::byte> memory;
    CudaEvent sent;
  };

  explicit CudaUploader(int device) : device_(device) {}
  absl::Status Copy(const std::byte* from, int64_t bytes, std::byte* to)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int device_;
  Mutex mutex_;
  CudaStream stream_ ABSL_GUARDED_BY(mutex_);
  DeviceBuffer uploaded_ ABSL_GUARDED_BY(mutex_);
  std::array<Part, 2> parts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh::expert
