#pragma once

// An expert in a device's memory.

#include <memory>

#include "absl/status/statusor.h"
#include "expert_service/kernels/cuda/cuda_memory.h"
#include "expert_service/kernels/cuda/cuda_uploader.h"
#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "expert_service/kernels/grouped_ffn.h"

namespace expertmesh::expert {

// All three matrices in one buffer, in the order that the kernels read them.
// Immutable; its memory is given back with its last reference, from any thread.
class CudaExpert final : public LoadedExpert {
 public:
  // From tensors, to the format of their type, or to bf16 or f32.
  // Errors: RESOURCE_EXHAUSTED where the device has no memory left;
  // INVALID_ARGUMENT for formats that tensors cannot be brought into; INTERNAL.
  // `memory` has buffers of Bytes(shape).
  static absl::StatusOr<std::shared_ptr<const CudaExpert>> FromTensors(
      const ExpertTensors& tensors, const FfnShape& shape,
      DeviceBufferPool& memory, CudaUploader& uploader);
  // From what was packed for the CPU, in the same format.
  static absl::StatusOr<std::shared_ptr<const CudaExpert>> FromPacked(
      const PackedExpert& expert, const FfnShape& shape,
      DeviceBufferPool& memory, CudaUploader& uploader);

  // What one takes.
  static int64_t Bytes(const FfnShape& shape);

  const CudaExpertView& view() const { return view_; }
  size_t size_bytes() const override { return static_cast<size_t>(bytes_); }

 private:
  CudaExpert(std::shared_ptr<std::byte> memory, const FfnShape& shape);
  static absl::StatusOr<std::shared_ptr<CudaExpert>> Allocate(
      const FfnShape& shape, DeviceBufferPool& memory);
  // Where a matrix lies; memory that only loading writes to.
  static void* Writable(const CudaMatrix& matrix) {
    return const_cast<void*>(matrix.fragments);
  }

  const std::shared_ptr<std::byte> memory_;
  const int64_t bytes_;
  CudaExpertView view_;
};

}  // namespace expertmesh::expert
