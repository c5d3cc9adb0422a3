#include "expert_service/kernels/cuda/grouped_gemm.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// Of cublas_api.h and library_types.h.
constexpr int kTransposed = 1;  // CUBLAS_OP_T
constexpr int kPlain = 0;       // CUBLAS_OP_N
constexpr int kBf16 = 14;       // CUDA_R_16BF
constexpr int kInF32 = 68;      // CUBLAS_COMPUTE_32F
// CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: partial sums of bf16
// products stay f32.
constexpr int kSumsInF32 = 16;

// What cuBLAS wants on Hopper; with its own it would allocate in a batch.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

absl::Status CublasStatus(int status, absl::string_view call) {
  if (status == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(call, ": cuBLAS status ", status));
}

}  // namespace

int64_t GroupedGemm::DeviceBytes() { return kWorkspaceBytes; }

absl::StatusOr<std::unique_ptr<GroupedGemm>> GroupedGemm::Create(
    cudaStream_t stream, int64_t max_groups) {
  std::unique_ptr<GroupedGemm> gemm(new GroupedGemm);
  ASSIGN_OR_RETURN(gemm->cublas_, LoadCublas());
  ASSIGN_OR_RETURN(gemm->workspace_, DeviceBuffer::Allocate(kWorkspaceBytes));
  RETURN_IF_ERROR(
      CublasStatus(gemm->cublas_.create(&gemm->handle_), "cublasCreate"));
  // In this order: a new stream takes the workspace away.
  RETURN_IF_ERROR(CublasStatus(gemm->cublas_.set_stream(gemm->handle_, stream),
                               "cublasSetStream"));
  RETURN_IF_ERROR(CublasStatus(
      gemm->cublas_.set_workspace(gemm->handle_, gemm->workspace_.data(),
                                  static_cast<size_t>(kWorkspaceBytes)),
      "cublasSetWorkspace"));
  RETURN_IF_ERROR(
      CublasStatus(gemm->cublas_.set_math_mode(gemm->handle_, kSumsInF32),
                   "cublasSetMathMode"));
  const auto count = static_cast<size_t>(max_groups);
  gemm->transposed_.assign(count, kTransposed);
  gemm->plain_.assign(count, kPlain);
  gemm->ones_.assign(count, 1.0f);
  gemm->zeros_.assign(count, 0.0f);
  for (std::vector<int>* of_groups :
       {&gemm->n_, &gemm->rows_, &gemm->k_, &gemm->sizes_}) {
    of_groups->resize(count);
  }
  return gemm;
}

GroupedGemm::~GroupedGemm() {
  if (handle_ != nullptr) cublas_.destroy(handle_);
}

cudaError_t GroupedGemm::Launch(const Products& products) {
  const int count = products.num_groups;
  std::fill_n(n_.begin(), count, products.n);
  std::fill_n(k_.begin(), count, products.k);
  std::fill_n(sizes_.begin(), count, products.per_group);
  for (int g = 0; g < count; ++g) rows_[g] = products.groups[g].num_rows;
  // To cuBLAS matrices lie column after column: Yᵀ = W Xᵀ.
  const int status = cublas_.gemm_grouped(
      handle_, transposed_.data(), plain_.data(), n_.data(), rows_.data(),
      k_.data(), ones_.data(), products.w, kBf16, k_.data(), products.x, kBf16,
      k_.data(), zeros_.data(), products.y, kBf16, n_.data(), count,
      sizes_.data(), kInF32);
  if (status == 0) return cudaSuccess;
  Log(LogLevel::kError, "cublasGemmGroupedBatchedEx failed",
      {{"status", status}, {"groups", count}});
  return cudaErrorUnknown;
}

}  // namespace expertmesh::expert
