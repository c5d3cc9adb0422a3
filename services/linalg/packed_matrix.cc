#include "services/linalg/packed_matrix.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/core/huge_page_arena.h"
#include "services/core/status_macros.h"
#include "services/linalg/quantize.h"

namespace expertmesh {
namespace {

// k copied at a time: the part of a panel that 64 rows scatter into stays in
// the L1 cache.
constexpr int64_t kPackStep = 32;

// Source bytes of a call of PackOptions::packed, at least, but for the last.
constexpr int64_t kReportBytes = int64_t{1} << 20;

// Elements of a mapped file may be unaligned.
template <typename T>
T ElementAt(const std::byte* row, int64_t i) {
  T value;
  std::memcpy(&value, row + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Calls use(get), get(row, i) being an element of that type as f32.
template <typename Use>
void WithF32(DType dtype, Use use) {
  switch (dtype) {
    case DType::kF32:
      return use(ElementAt<float>);
    case DType::kBF16:
      return use([](const std::byte* row, int64_t i) {
        return ToF32(ElementAt<BF16>(row, i));
      });
    case DType::kF16:
      return use([](const std::byte* row, int64_t i) {
        return F16ToF32(ElementAt<uint16_t>(row, i));
      });
    case DType::kInt8:
      return;  // no tensor is
  }
}

// The rows [k] of a panel's outputs, from whatever parts they are; null behind
// the last.
struct PanelRows {
  const std::byte* rows[kPanelWidth] = {};
  DType dtype = DType::kF32;
  int64_t k = 0;
};

// Value i of row r goes to [i / kGroup][r][i % kGroup] of `out`, kGroup being 2
// for 16-bit types. `get(row, i)` is the value; behind the first row that is
// null there are none.
template <typename T, int kGroup, int64_t kWidth, typename Get>
void Interleave(const std::byte* const* rows, int64_t k, void* out, Get get) {
  for (int64_t begin = 0; begin < k; begin += kPackStep) {
    const int64_t end = std::min(begin + kPackStep, k);
    for (int64_t r = 0; r < kWidth && rows[r] != nullptr; ++r) {
      T* column = static_cast<T*>(out) + r * kGroup;
      for (int64_t i = begin; i < end; ++i) {
        column[i / kGroup * kWidth * kGroup + i % kGroup] = get(rows[r], i);
      }
    }
  }
}

// Rows of 16 bits as they are, two elements at a time where that fits.
void InterleavePairs(const PanelRows& from, std::byte* panel) {
  if (from.k % 2 == 0) {
    Interleave<uint32_t, 1, kPanelWidth>(from.rows, from.k / 2, panel,
                                         ElementAt<uint32_t>);
  } else {
    Interleave<uint16_t, 2, kPanelWidth>(from.rows, from.k, panel,
                                         ElementAt<uint16_t>);
  }
}

absl::Status QuantizePanel(const PanelRows& from, WeightFormat format,
                           std::byte* panel) {
  const auto size = static_cast<size_t>(QuantizeK(from.k) * kQuantizeWidth);
  const std::unique_ptr<float[]> weights(new (std::nothrow) float[size]);
  if (weights == nullptr) {
    return absl::ResourceExhaustedError("there is no memory left to quantize");
  }
  for (int64_t first = 0; first < kPanelWidth; first += kQuantizeWidth) {
    if (from.rows[first] == nullptr) break;
    std::fill_n(weights.get(), size, 0.0f);
    WithF32(from.dtype, [&](auto get) {
      Interleave<float, 1, kQuantizeWidth>(from.rows + first, from.k,
                                           weights.get(), get);
    });
    if (!QuantizeColumns(weights.get(), from.k, format, first, panel)) {
      return absl::InvalidArgumentError(
          "weights that are not finite cannot be quantized");
    }
  }
  return absl::OkStatus();
}

PanelRows RowsOfPanel(absl::Span<const TensorView> parts, int64_t panel) {
  PanelRows out = {.dtype = parts[0].dtype, .k = parts[0].shape[1]};
  const int64_t row_bytes = out.k * static_cast<int64_t>(DTypeBytes(out.dtype));
  const int64_t end = (panel + 1) * kPanelWidth;
  int64_t row = panel * kPanelWidth;
  int64_t part_begin = 0;
  for (const TensorView& part : parts) {
    const int64_t part_end = part_begin + part.shape[0];
    for (; row < std::min(end, part_end); ++row) {
      out.rows[row % kPanelWidth] = part.data + (row - part_begin) * row_bytes;
    }
    part_begin = part_end;
  }
  return out;
}

absl::Status PackPanel(const PanelRows& from, WeightFormat format,
                       std::byte* panel) {
  if (IsQuantized(format)) return QuantizePanel(from, format, panel);
  if (format == WeightFormat::kF32) {
    WithF32(from.dtype, [&](auto get) {
      Interleave<float, 1, kPanelWidth>(from.rows, from.k, panel, get);
    });
  } else if (FormatOf(from.dtype) == format) {
    InterleavePairs(from, panel);
  } else {
    WithF32(from.dtype, [&](auto get) {
      Interleave<uint16_t, 2, kPanelWidth>(
          from.rows, from.k, panel, [&](const std::byte* row, int64_t i) {
            return ToBF16(get(row, i)).bits;
          });
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

// Reports the rows of panels [first, last) part by part.
void ReportRows(absl::Span<const TensorView> parts, int64_t first, int64_t last,
                const PackOptions& options) {
  int64_t part_begin = 0;
  for (const TensorView& part : parts) {
    const int64_t part_end = part_begin + part.shape[0];
    const int64_t begin = std::max(part_begin, first * kPanelWidth);
    const int64_t end = std::min(part_end, last * kPanelWidth);
    if (begin < end) {
      const int64_t k = part.shape[1];
      const auto row_bytes = k * static_cast<int64_t>(DTypeBytes(part.dtype));
      options.packed({part.data + (begin - part_begin) * row_bytes,
                      part.dtype,
                      {end - begin, k}});
    }
    part_begin = part_end;
  }
}

}  // namespace

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(
    absl::Span<const TensorView> parts, WeightFormat format,
    const PackOptions& options) {
  RETURN_IF_ERROR(CheckParts(parts, format));
  const int64_t k = parts[0].shape[1];
  int64_t n = 0;
  for (const TensorView& part : parts) n += part.shape[0];
  const std::shared_ptr<std::byte> panels = HugePageArena::Shared().Allocate(
      static_cast<size_t>(PackedBytes(n, k, format)));
  PackedMatrix packed = FromPanels(n, k, format, panels);

  const int64_t panel_source_bytes =
      kPanelWidth * std::max<int64_t>(k, 1) *
      static_cast<int64_t>(DTypeBytes(parts[0].dtype));
  const int64_t run_panels =
      (kReportBytes + panel_source_bytes - 1) / panel_source_bytes;
  // Of each run of panels; whoever packs the last one reports the run. Earlier
  // would not do: a page that is read once more stays.
  std::vector<std::atomic<int64_t>> panels_left(
      (packed.num_panels() + run_panels - 1) / run_panels);
  for (int64_t i = 0; i < packed.num_panels(); ++i) {
    ++panels_left[i / run_panels];
  }
  std::vector<absl::Status> statuses(packed.num_panels());
  const auto pack = [&](int64_t index) {
    std::byte* panel = panels.get() + index * packed.panel_bytes_;
    std::memset(panel, 0, packed.panel_bytes_);
    statuses[index] = PackPanel(RowsOfPanel(parts, index), format, panel);
    const int64_t run = index / run_panels;
    if (options.packed && --panels_left[run] == 0) {
      ReportRows(parts, run * run_panels, (run + 1) * run_panels, options);
    }
  };
  if (options.pool != nullptr) {
    options.pool->ParallelFor(packed.num_panels(), pack);
  } else {
    for (int64_t i = 0; i < packed.num_panels(); ++i) pack(i);
  }
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return packed;
}

PackedMatrix PackedMatrix::FromPanels(int64_t n, int64_t k, WeightFormat format,
                                      std::shared_ptr<const std::byte> panels) {
  PackedMatrix matrix;
  matrix.n_ = n;
  matrix.k_ = k;
  matrix.format_ = format;
  matrix.panel_bytes_ = PackedBytes(kPanelWidth, k, format);
  matrix.panels_ = std::move(panels);
  return matrix;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(const TensorView& weight,
                                                WeightFormat format,
                                                const PackOptions& options) {
  return Pack(absl::MakeConstSpan(&weight, 1), format, options);
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
