#include "expert_service/kernels/cuda/cuda_expert.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh::expert {
namespace {

// A matrix of an expert: from where, to where.
struct TensorMove {
  const TensorView* tensor;
  const CudaMatrix* matrix;
};
struct PanelsMove {
  const PackedMatrix* packed;
  const CudaMatrix* matrix;
};

// Of gate and of up, and of down: each matrix begins aligned.
int64_t MatrixBytes(int64_t n, int64_t k, WeightFormat format) {
  return CudaAligned(CudaMatrixBytes(n, k, format));
}

bool CanRepack(DType dtype, WeightFormat format) {
  return format == FormatOf(dtype) || format == WeightFormat::kBF16 ||
         format == WeightFormat::kF32;
}

}  // namespace

int64_t CudaExpert::Bytes(const FfnShape& shape) {
  const int64_t hidden = shape.hidden_size;
  const int64_t intermediate = shape.intermediate_size;
  return 2 * MatrixBytes(intermediate, hidden, shape.format) +
         MatrixBytes(hidden, intermediate, shape.format);
}

CudaExpert::CudaExpert(std::shared_ptr<std::byte> memory, const FfnShape& shape)
    : memory_(std::move(memory)), bytes_(Bytes(shape)) {
  const int64_t hidden = shape.hidden_size;
  const int64_t intermediate = shape.intermediate_size;
  const int64_t bytes = MatrixBytes(intermediate, hidden, shape.format);
  const std::byte* data = memory_.get();
  view_.gate = CudaMatrixAt(data, intermediate, hidden, shape.format);
  view_.up = CudaMatrixAt(data + bytes, intermediate, hidden, shape.format);
  view_.down =
      CudaMatrixAt(data + 2 * bytes, hidden, intermediate, shape.format);
}

absl::StatusOr<std::shared_ptr<CudaExpert>> CudaExpert::Allocate(
    const FfnShape& shape, DeviceBufferPool& memory) {
  ASSIGN_OR_RETURN(auto buffer, memory.Take());
  return std::shared_ptr<CudaExpert>(new CudaExpert(std::move(buffer), shape));
}

absl::StatusOr<std::shared_ptr<const CudaExpert>> CudaExpert::FromTensors(
    const ExpertTensors& tensors, const FfnShape& shape,
    DeviceBufferPool& memory, CudaUploader& uploader) {
  ASSIGN_OR_RETURN(const std::shared_ptr<CudaExpert> expert,
                   Allocate(shape, memory));
  const CudaExpertView& view = expert->view_;
  for (const auto& [tensor, matrix] :
       {TensorMove{&tensors.gate_proj, &view.gate},
        TensorMove{&tensors.up_proj, &view.up},
        TensorMove{&tensors.down_proj, &view.down}}) {
    if (!CanRepack(tensor->dtype, shape.format)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "weights of ", DTypeName(tensor->dtype),
          " are not brought to a device as ", WeightFormatName(shape.format)));
    }
    RETURN_IF_ERROR(uploader.Upload(
        tensor->data, static_cast<int64_t>(tensor->size_bytes()),
        [&, tensor = tensor, to = Writable(*matrix)](const std::byte* uploaded,
                                                     cudaStream_t stream) {
          return LaunchRepackTensor(uploaded, tensor->dtype, tensor->shape[0],
                                    tensor->shape[1], shape.format, shape.order,
                                    to, stream);
        }));
  }
  return expert;
}

absl::StatusOr<std::shared_ptr<const CudaExpert>> CudaExpert::FromPacked(
    const PackedExpert& expert, const FfnShape& shape, DeviceBufferPool& memory,
    CudaUploader& uploader) {
  ASSIGN_OR_RETURN(const std::shared_ptr<CudaExpert> loaded,
                   Allocate(shape, memory));
  const CudaExpertView& view = loaded->view_;
  for (const auto& [packed, matrix] :
       {PanelsMove{&expert.gate_proj, &view.gate},
        PanelsMove{&expert.up_proj, &view.up},
        PanelsMove{&expert.down_proj, &view.down}}) {
    RETURN_IF_ERROR(uploader.Upload(
        packed->panel(0), static_cast<int64_t>(packed->size_bytes()),
        [&, packed = packed, to = Writable(*matrix)](const std::byte* uploaded,
                                                     cudaStream_t stream) {
          return LaunchRepackPanels(uploaded, packed->n(), packed->k(),
                                    packed->format(), shape.order, to, stream);
        }));
  }
  return loaded;
}

}  // namespace expertmesh::expert
