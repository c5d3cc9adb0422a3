#include "services/linalg/packed_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/linalg/quantize.h"

namespace expertmesh {
namespace {

// k copied at a time: the part of a panel that 64 rows scatter into stays in
// the L1 cache.
constexpr int64_t kPackStep = 32;

// Elements of a mapped file may be unaligned.
template <typename T>
T ElementAt(const std::byte* row, int64_t i) {
  T value;
  std::memcpy(&value, row + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float AsF32(const std::byte* row, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF32:
      return ElementAt<float>(row, i);
    case DType::kBF16:
      return ToF32(ElementAt<BF16>(row, i));
    case DType::kF16:
      return F16ToF32(ElementAt<uint16_t>(row, i));
  }
  return 0;
}

// Some rows [rows, k] of a weight, bound for a panel's columns from `column`
// on.
struct PanelRows {
  const std::byte* data;
  DType dtype;
  int64_t rows;
  int64_t k;
  int64_t column;

  const std::byte* row(int64_t r) const {
    return data + r * k * static_cast<int64_t>(DTypeBytes(dtype));
  }
};

// Value i of a column goes to [i / kGroup][column][i % kGroup], kGroup being 2
// for 16-bit types. `get(row, i)` is the value.
template <typename T, int kGroup, typename Get>
void PackRows(const PanelRows& from, std::byte* panel, Get get) {
  for (int64_t begin = 0; begin < from.k; begin += kPackStep) {
    const int64_t end = std::min(begin + kPackStep, from.k);
    for (int64_t r = 0; r < from.rows; ++r) {
      T* column = reinterpret_cast<T*>(panel) + (from.column + r) * kGroup;
      const std::byte* row = from.row(r);
      for (int64_t i = begin; i < end; ++i) {
        column[i / kGroup * kPanelWidth * kGroup + i % kGroup] = get(row, i);
      }
    }
  }
}

absl::Status QuantizeRows(const PanelRows& from, WeightFormat format,
                          std::byte* panel) {
  const auto quantize =
      format == WeightFormat::kInt8 ? QuantizeToInt8 : QuantizeToInt4;
  std::vector<float> weights(static_cast<size_t>(from.k));
  for (int64_t r = 0; r < from.rows; ++r) {
    for (int64_t i = 0; i < from.k; ++i) {
      weights[i] = AsF32(from.row(r), from.dtype, i);
      if (!std::isfinite(weights[i])) {
        return absl::InvalidArgumentError(
            "weights that are not finite cannot be quantized");
      }
    }
    quantize(weights.data(), from.k, from.column + r, panel);
  }
  return absl::OkStatus();
}

absl::Status PackPanelRows(const PanelRows& from, WeightFormat format,
                           std::byte* panel) {
  const bool keeps = FormatOf(from.dtype) == format;
  if (IsQuantized(format)) return QuantizeRows(from, format, panel);
  if (format == WeightFormat::kF32) {
    PackRows<float, 1>(from, panel, [&](const std::byte* row, int64_t i) {
      return AsF32(row, from.dtype, i);
    });
  } else if (keeps) {
    PackRows<uint16_t, 2>(from, panel, ElementAt<uint16_t>);
  } else {
    PackRows<uint16_t, 2>(from, panel, [&](const std::byte* row, int64_t i) {
      return ToBF16(AsF32(row, from.dtype, i)).bits;
    });
  }
  return absl::OkStatus();
}

absl::Status CheckParts(absl::Span<const TensorView> parts,
                        WeightFormat format) {
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
  if (format == WeightFormat::kF16 && parts[0].dtype != DType::kF16) {
    return absl::InvalidArgumentError("weights cannot be converted to f16");
  }
  if (IsQuantized(format) && parts[0].shape[1] > kMaxQuantizedK) {
    return absl::InvalidArgumentError(
        absl::StrCat("weights with inputs of ", parts[0].shape[1],
                     " cannot be quantized (at most ", kMaxQuantizedK, ")"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(
    absl::Span<const TensorView> parts, WeightFormat format) {
  if (absl::Status status = CheckParts(parts, format); !status.ok()) {
    return status;
  }
  PackedMatrix packed;
  packed.k_ = parts[0].shape[1];
  packed.format_ = format;
  for (const TensorView& part : parts) packed.n_ += part.shape[0];
  packed.panel_bytes_ = PackedBytes(kPanelWidth, packed.k_, format);
  packed.buffer_ = Buffer(packed.num_panels() * packed.panel_bytes_);
  std::memset(packed.buffer_.data(), 0, packed.buffer_.size());

  int64_t n = 0;
  for (const TensorView& part : parts) {
    PanelRows rows = {part.data, part.dtype, 0, packed.k_, 0};
    for (int64_t i = 0; i < part.shape[0];) {
      rows.column = n % kPanelWidth;
      rows.rows = std::min(kPanelWidth - rows.column, part.shape[0] - i);
      std::byte* panel =
          packed.buffer_.data() + n / kPanelWidth * packed.panel_bytes_;
      if (absl::Status status = PackPanelRows(rows, format, panel);
          !status.ok()) {
        return status;
      }
      rows.data = rows.row(rows.rows);
      i += rows.rows;
      n += rows.rows;
    }
  }
  return packed;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(const TensorView& weight,
                                                WeightFormat format) {
  return Pack(absl::MakeConstSpan(&weight, 1), format);
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(
    absl::Span<const TensorView> parts) {
  return Pack(parts,
              parts.empty() ? WeightFormat::kF32 : FormatOf(parts[0].dtype));
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(const TensorView& weight) {
  return Pack(absl::MakeConstSpan(&weight, 1));
}

}  // namespace expertmesh
