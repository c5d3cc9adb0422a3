#pragma once

// Owners of what the CUDA runtime hands out, and its errors.

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh::expert {

// RESOURCE_EXHAUSTED where memory ended, else INTERNAL, naming the call. The
// runtime forgets the error, so that the next launch does not report it.
absl::Status CudaStatus(cudaError_t error, absl::string_view call);

// Bytes to the next multiple of what kernels want their operands aligned to.
inline constexpr int64_t kCudaAlignment = 256;
constexpr int64_t CudaAligned(int64_t bytes) {
  return (bytes + kCudaAlignment - 1) / kCudaAlignment * kCudaAlignment;
}

// The last owner of memory may be a thread that never chose a device.
struct DeviceMemoryDeleter {
  int device = 0;
  void operator()(std::byte* data) const {
    cudaSetDevice(device);
    cudaFree(data);
  }
};

// Memory of the current device, 256-byte aligned, uninitialised. Movable.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Errors: RESOURCE_EXHAUSTED, or INTERNAL.
  static absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes);

  std::byte* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  std::unique_ptr<std::byte, DeviceMemoryDeleter> data_;
  int64_t size_ = 0;
};

// Buffers of one size, kept when they are given back: to free memory of a
// device is to wait for all that it does. Thread-safe; buffers may outlive it.
class DeviceBufferPool {
 public:
  explicit DeviceBufferPool(int64_t bytes);

  // Memory of the device that is current where there is none to reuse, given
  // back with its last reference. Errors: as DeviceBuffer::Allocate.
  absl::StatusOr<std::shared_ptr<std::byte>> Take();

  int64_t buffer_bytes() const;

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

// Memory of the host that the device copies from and to while the host goes on.
// Errors: RESOURCE_EXHAUSTED, or INTERNAL.
absl::StatusOr<std::shared_ptr<std::byte>> AllocatePinned(int64_t bytes);

struct CudaStreamDeleter {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using CudaStream =
    std::unique_ptr<std::remove_pointer_t<cudaStream_t>, CudaStreamDeleter>;
// One that does not wait for the default stream.
absl::StatusOr<CudaStream> NewCudaStream();

struct CudaEventDeleter {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using CudaEvent =
    std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, CudaEventDeleter>;
// One whose waiters sleep, and that tells no time.
absl::StatusOr<CudaEvent> NewCudaEvent();
// One whose waiters sleep, and that does.
absl::StatusOr<CudaEvent> NewCudaTimer();

struct CudaGraphDeleter {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
// Launches that are repeated as one.
using CudaGraph =
    std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, CudaGraphDeleter>;

}  // namespace expertmesh::expert
