#include "expert_service/kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "expert_service/kernels/cuda/arithmetic_check.h"
#include "expert_service/kernels/cuda/cuda_expert.h"
#include "expert_service/kernels/cuda/cuda_uploader.h"
#include "expert_service/kernels/cuda/grouped_ffn_cuda.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// Larger pieces are handed out as multiples of this; of smaller ones, several
// share one.
constexpr int64_t kGranule = int64_t{2} << 20;
int64_t BytesTaken(int64_t bytes) {
  return bytes < kGranule ? bytes
                          : (bytes + kGranule - 1) / kGranule * kGranule;
}

class CudaBackendImpl final : public CudaBackend {
 public:
  CudaBackendImpl(int device, const FfnShape& shape, int64_t budget_bytes,
                  std::unique_ptr<CudaUploader> uploader,
                  std::unique_ptr<GroupedFfn> ffn)
      : device_(device),
        shape_(shape),
        budget_bytes_(budget_bytes),
        memory_(CudaExpert::Bytes(shape)),
        uploader_(std::move(uploader)),
        ffn_(std::move(ffn)) {}

  int64_t expert_bytes() const override {
    return BytesTaken(CudaExpert::Bytes(shape_));
  }
  int64_t budget_bytes() const override { return budget_bytes_; }
  // Codes are made on the CPU, as for the CPU.
  bool takes_tensors() const override { return !IsQuantized(shape_.format); }

  absl::StatusOr<std::shared_ptr<const LoadedExpert>> Load(
      const ExpertTensors& tensors) override {
    RETURN_IF_ERROR(UseDevice());
    return CudaExpert::FromTensors(tensors, shape_, memory_, *uploader_);
  }
  absl::StatusOr<std::shared_ptr<const LoadedExpert>> Load(
      const PackedExpert& expert) override {
    RETURN_IF_ERROR(UseDevice());
    return CudaExpert::FromPacked(expert, shape_, memory_, *uploader_);
  }

  GroupedFfn& ffn() override { return *ffn_; }

 private:
  // Each thread has a device of its own.
  absl::Status UseDevice() const {
    return CudaStatus(cudaSetDevice(device_), "cudaSetDevice");
  }

  const int device_;
  const FfnShape shape_;
  const int64_t budget_bytes_;
  DeviceBufferPool memory_;  // of experts
  const std::unique_ptr<CudaUploader> uploader_;
  const std::unique_ptr<GroupedFfn> ffn_;
};

// What the fraction leaves for experts, beside the largest tensor on its way.
absl::StatusOr<int64_t> WeightBudget(const CudaBackendOptions& options,
                                     int64_t kernel_bytes) {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  RETURN_IF_ERROR(
      CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  const int64_t tensor_bytes =
      options.hidden_size * options.intermediate_size * 4;
  // Others on the device keep what they have.
  const auto allowed =
      std::min(static_cast<int64_t>(options.memory_fraction *
                                    static_cast<double>(total_bytes)),
               static_cast<int64_t>(free_bytes));
  if (allowed >= kernel_bytes + tensor_bytes) {
    return allowed - kernel_bytes - tensor_bytes;
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("--max-batch-rows: ", options.max_rows,
                   " rows of this model need a workspace of ", kernel_bytes,
                   " bytes on the device, of which ", allowed,
                   " bytes, by --device-memory-fraction and what is free, "
                   "leave no room for experts"));
}

absl::StatusOr<std::unique_ptr<CudaBackend>> OpenUnchecked(
    const CudaBackendOptions& options) {
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options.device), "cudaSetDevice"));
  const bool is_in_rows =
      options.is_fast && options.format == WeightFormat::kBF16;
  const FfnShape shape = {
      options.hidden_size, options.intermediate_size, options.format,
      is_in_rows ? WeightOrder::kRows : WeightOrder::kFragments};
  const GroupedFfnCudaOptions kernel = {options.device, shape, options.max_rows,
                                        options.max_groups, options.metrics};
  ASSIGN_OR_RETURN(const int64_t budget_bytes,
                   WeightBudget(options, GroupedFfnCudaBytes(kernel)));
  ASSIGN_OR_RETURN(auto uploader, CudaUploader::Create(options.device));
  auto ffn = MakeGroupedFfnCuda(kernel);
  if (absl::IsFailedPrecondition(ffn.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("--numerics=fast: ", ffn.status().message()));
  }
  RETURN_IF_ERROR(ffn.status());
  return std::make_unique<CudaBackendImpl>(options.device, shape, budget_bytes,
                                           std::move(uploader),
                                           *std::move(ffn));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> OpenCudaBackend(
    const CudaBackendOptions& options) {
  // First, since its refusals name what is too large.
  ASSIGN_OR_RETURN(auto backend, OpenUnchecked(options));
  const CudaBackendOptions small = CheckedOptions(options);
  const auto checked = OpenUnchecked(small);
  if (!checked.ok()) {
    return absl::Status(checked.status().code(),
                        absl::StrCat("trying the CUDA device's arithmetic: ",
                                     checked.status().message()));
  }
  RETURN_IF_ERROR(CheckArithmetic(small, **checked));
  return backend;
}

}  // namespace expertmesh::expert
