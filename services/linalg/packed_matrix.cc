#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/linalg/gemm.h"

namespace expertmesh {
namespace {

// Copies one row of a weight [k] to its column of the panels: element k_i goes
// to [k_i / group][column][k_i % group], group being 2 for 16-bit types.
template <typename T, int kGroup>
void PackRow(const std::byte* row, int64_t k, T* column) {
  for (int64_t i = 0; i < k; ++i) {
    T value;
    std::memcpy(&value, row + i * sizeof(T), sizeof(T));
    column[i / kGroup * kPanelWidth * kGroup + i % kGroup] = value;
  }
}

absl::Status CheckParts(absl::Span<const TensorView> parts) {
  if (parts.empty()) return absl::InvalidArgumentError("no weight to pack");
  for (const TensorView& part : parts) {
    if (part.shape.size() != 2 || part.shape[0] < 0 || part.shape[1] < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a weight matrix has ", part.shape.size(), " dimensions, not 2"));
    }
    if (part.shape[1] != parts[0].shape[1] || part.dtype != parts[0].dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights packed together differ: [", part.shape[0], ", ",
                       part.shape[1], "] ", DTypeName(part.dtype), " beside [",
                       parts[0].shape[0], ", ", parts[0].shape[1], "] ",
                       DTypeName(parts[0].dtype)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(
    absl::Span<const TensorView> parts) {
  if (absl::Status status = CheckParts(parts); !status.ok()) return status;
  PackedMatrix packed;
  packed.k_ = parts[0].shape[1];
  packed.dtype_ = parts[0].dtype;
  for (const TensorView& part : parts) packed.n_ += part.shape[0];

  const bool wide = packed.dtype_ == DType::kF32;
  const int64_t rows = wide ? packed.k_ : (packed.k_ + 1) / 2;
  packed.panel_bytes_ = rows * kPanelWidth * sizeof(uint32_t);
  packed.buffer_ = Buffer(packed.num_panels() * packed.panel_bytes_);
  std::memset(packed.buffer_.data(), 0, packed.buffer_.size());

  int64_t n = 0;
  for (const TensorView& part : parts) {
    const int64_t row_bytes = packed.k_ * DTypeBytes(packed.dtype_);
    for (int64_t i = 0; i < part.shape[0]; ++i, ++n) {
      std::byte* panel = packed.buffer_.data() +
                         n / kPanelWidth * packed.panel_bytes_ +
                         n % kPanelWidth * sizeof(uint32_t);
      const std::byte* row = part.data + i * row_bytes;
      if (wide) {
        PackRow<float, 1>(row, packed.k_, reinterpret_cast<float*>(panel));
      } else {
        PackRow<uint16_t, 2>(row, packed.k_,
                             reinterpret_cast<uint16_t*>(panel));
      }
    }
  }
  return packed;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(const TensorView& weight) {
  return Pack(absl::MakeConstSpan(&weight, 1));
}

}  // namespace expertmesh
