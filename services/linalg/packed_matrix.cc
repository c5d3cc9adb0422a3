#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/linalg/gemm.h"

namespace expertmesh {
namespace {

// k copied at a time: the part of a panel that 64 rows scatter into stays in
// the L1 cache.
constexpr int64_t kPackStep = 32;

// Copies k values [begin, end) of one row of a weight to its column of a panel:
// value i goes to [i / kGroup][column][i % kGroup], kGroup being 2 for 16-bit
// types.
template <typename T, int kGroup>
void PackValues(const std::byte* row, int64_t begin, int64_t end, T* column) {
  for (int64_t i = begin; i < end; ++i) {
    T value;
    std::memcpy(&value, row + i * sizeof(T), sizeof(T));
    column[i / kGroup * kPanelWidth * kGroup + i % kGroup] = value;
  }
}

// Copies `rows` rows [rows, k] to the panel from column `column` on.
template <typename T, int kGroup>
void PackRows(const std::byte* weight, int64_t rows, int64_t k, int64_t column,
              std::byte* panel) {
  for (int64_t begin = 0; begin < k; begin += kPackStep) {
    const int64_t end = std::min(begin + kPackStep, k);
    for (int64_t r = 0; r < rows; ++r) {
      PackValues<T, kGroup>(
          weight + r * k * sizeof(T), begin, end,
          reinterpret_cast<T*>(panel) + (column + r) * kGroup);
    }
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
  const int64_t steps = wide ? packed.k_ : (packed.k_ + 1) / 2;
  packed.panel_bytes_ = steps * kPanelWidth * sizeof(uint32_t);
  packed.buffer_ = Buffer(packed.num_panels() * packed.panel_bytes_);
  std::memset(packed.buffer_.data(), 0, packed.buffer_.size());

  int64_t n = 0;
  for (const TensorView& part : parts) {
    const int64_t row_bytes = packed.k_ * DTypeBytes(packed.dtype_);
    for (int64_t i = 0; i < part.shape[0];) {
      const int64_t column = n % kPanelWidth;
      const int64_t rows = std::min(kPanelWidth - column, part.shape[0] - i);
      std::byte* panel =
          packed.buffer_.data() + n / kPanelWidth * packed.panel_bytes_;
      const auto pack = wide ? PackRows<float, 1> : PackRows<uint16_t, 2>;
      pack(part.data + i * row_bytes, rows, packed.k_, column, panel);
      i += rows;
      n += rows;
    }
  }
  return packed;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(const TensorView& weight) {
  return Pack(absl::MakeConstSpan(&weight, 1));
}

}  // namespace expertmesh
