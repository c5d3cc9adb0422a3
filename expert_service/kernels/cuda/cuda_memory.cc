#include "expert_service/kernels/cuda/cuda_memory.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/core/mutex.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {

absl::Status CudaStatus(cudaError_t error, absl::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  const std::string message =
      absl::StrCat(call, ": ", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation
             ? absl::ResourceExhaustedError(message)
             : absl::InternalError(message);
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(int64_t bytes) {
  int device = 0;
  RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "cudaGetDevice"));
  void* data = nullptr;
  RETURN_IF_ERROR(
      CudaStatus(cudaMalloc(&data, static_cast<size_t>(bytes)), "cudaMalloc"));
  DeviceBuffer buffer;
  buffer.data_ = {static_cast<std::byte*>(data), DeviceMemoryDeleter{device}};
  buffer.size_ = bytes;
  return buffer;
}

struct DeviceBufferPool::State {
  explicit State(int64_t bytes) : bytes(bytes) {}

  const int64_t bytes;
  Mutex mutex;
  std::vector<DeviceBuffer> idle ABSL_GUARDED_BY(mutex);
};

DeviceBufferPool::DeviceBufferPool(int64_t bytes)
    : state_(std::make_shared<State>(bytes)) {}

int64_t DeviceBufferPool::buffer_bytes() const { return state_->bytes; }

absl::StatusOr<std::shared_ptr<std::byte>> DeviceBufferPool::Take() {
  DeviceBuffer taken;
  {
    MutexLock lock(&state_->mutex);
    if (!state_->idle.empty()) {
      taken = std::move(state_->idle.back());
      state_->idle.pop_back();
    }
  }
  if (taken.data() == nullptr) {
    ASSIGN_OR_RETURN(taken, DeviceBuffer::Allocate(state_->bytes));
  }
  const auto owner = std::make_shared<DeviceBuffer>(std::move(taken));
  return std::shared_ptr<std::byte>(owner->data(),
                                    [owner, state = state_](std::byte*) {
                                      MutexLock lock(&state->mutex);
                                      state->idle.push_back(std::move(*owner));
                                    });
}

absl::StatusOr<std::shared_ptr<std::byte>> AllocatePinned(int64_t bytes) {
  void* data = nullptr;
  RETURN_IF_ERROR(CudaStatus(
      cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocDefault),
      "cudaHostAlloc"));
  return std::shared_ptr<std::byte>(
      static_cast<std::byte*>(data),
      [](std::byte* pinned) { cudaFreeHost(pinned); });
}

absl::StatusOr<CudaStream> NewCudaStream() {
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                 "cudaStreamCreateWithFlags"));
  return CudaStream(stream);
}

namespace {

absl::StatusOr<CudaEvent> NewEvent(unsigned flags) {
  cudaEvent_t event = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, flags),
                             "cudaEventCreateWithFlags"));
  return CudaEvent(event);
}

}  // namespace

absl::StatusOr<CudaEvent> NewCudaEvent() {
  return NewEvent(cudaEventBlockingSync | cudaEventDisableTiming);
}

absl::StatusOr<CudaEvent> NewCudaTimer() {
  return NewEvent(cudaEventBlockingSync);
}

}  // namespace expertmesh::expert
