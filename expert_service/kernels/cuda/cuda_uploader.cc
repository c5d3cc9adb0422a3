#include "expert_service/kernels/cuda/cuda_uploader.h"

#include <algorithm>
#include <cstring>

#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

constexpr int64_t kPartBytes = int64_t{4} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaUploader>> CudaUploader::Create(int device) {
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device), "cudaSetDevice"));
  std::unique_ptr<CudaUploader> uploader(new CudaUploader(device));
  MutexLock lock(&uploader->mutex_);
  ASSIGN_OR_RETURN(uploader->stream_, NewCudaStream());
  for (Part& part : uploader->parts_) {
    ASSIGN_OR_RETURN(part.memory, AllocatePinned(kPartBytes));
    ASSIGN_OR_RETURN(part.sent, NewCudaEvent());
  }
  return uploader;
}

absl::Status CudaUploader::Upload(
    const std::byte* from, int64_t bytes,
    absl::FunctionRef<cudaError_t(const std::byte*, cudaStream_t)> launch) {
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), "cudaSetDevice"));
  if (uploaded_.size() < bytes) {
    uploaded_ = DeviceBuffer();
    ASSIGN_OR_RETURN(uploaded_, DeviceBuffer::Allocate(bytes));
  }
  absl::Status status = Copy(from, bytes, uploaded_.data());
  if (status.ok()) {
    status = CudaStatus(launch(uploaded_.data(), stream_.get()), "a launch");
  }
  // Whatever went wrong, the buffers are free only when nothing uses them.
  const absl::Status waited =
      CudaStatus(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
  return status.ok() ? waited : status;
}

absl::Status CudaUploader::Copy(const std::byte* from, int64_t bytes,
                                std::byte* to) {
  for (int64_t done = 0, i = 0; done < bytes; done += kPartBytes, ++i) {
    const Part& part = parts_[i % parts_.size()];
    // Of an event that was never recorded nothing is awaited.
    RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(part.sent.get()),
                               "cudaEventSynchronize"));
    const auto count = static_cast<size_t>(std::min(kPartBytes, bytes - done));
    std::memcpy(part.memory.get(), from + done, count);
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(to + done, part.memory.get(), count,
                                   cudaMemcpyHostToDevice, stream_.get()),
                   "cudaMemcpyAsync"));
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(part.sent.get(), stream_.get()),
                               "cudaEventRecord"));
  }
  return absl::OkStatus();
}

}  // namespace expertmesh::expert
