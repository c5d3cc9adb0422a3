#include "services/linalg/gemm.h"

#include <algorithm>

#include "services/linalg/isa/kernels.h"

namespace expertmesh {
namespace {

// Rows of one task at least: fewer would read a panel too often.
constexpr int64_t kMinTaskRows = 48;

ActivationView RowsFrom(const ActivationView& x, int64_t row) {
  ActivationView rows = x;
  if (x.data != nullptr) {
    rows.data = static_cast<const std::byte*>(x.data) +
                row * x.stride * static_cast<int64_t>(DTypeBytes(x.dtype));
  }
  if (x.quantized.codes != nullptr) {
    rows.quantized.codes += row * x.quantized.stride;
    rows.quantized.scales += row;
  }
  return rows;
}

// Parts to cut the rows into, so that panels times parts keep every thread
// busy to the end.
int64_t RowParts(int64_t num_rows, int64_t num_panels, int num_threads) {
  if (num_threads == 1) return 1;
  const int64_t wanted = (4 * num_threads + num_panels - 1) / num_panels;
  return std::clamp<int64_t>(num_rows / kMinTaskRows, 1, wanted);
}

// Where an int4 panel is unpacked; one per thread, as large as the largest.
int8_t* Scratch(int64_t k) {
  static thread_local Buffer scratch;
  const auto size = static_cast<size_t>(k * kPanelWidth);
  if (scratch.size() < size) scratch = Buffer(size);
  return scratch.as<int8_t>();
}

void QuantizedPanel(const QuantizedView& x, int64_t num_rows,
                    const PackedMatrix& w, int64_t panel, int64_t width,
                    float* y, int64_t y_stride) {
  const bool is_int4 = w.format() == WeightFormat::kInt4;
  const int64_t k = PaddedQuantizedK(w.k());
  ActiveKernels().gemm_panel_quantized[is_int4 ? 1 : 0]({
      .x = x.codes,
      .x_stride = x.stride,
      .x_scales = x.scales,
      .num_rows = num_rows,
      .panel = w.panel(panel),
      .k = k,
      .width = width,
      .y = y,
      .y_stride = y_stride,
      .scratch = is_int4 ? Scratch(k) : nullptr,
  });
}

}  // namespace

void GemmPanel(const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
               int64_t panel, float* y, int64_t y_stride) {
  const int64_t width = std::min(kPanelWidth, w.n() - panel * kPanelWidth);
  if (IsQuantized(w.format())) {
    QuantizedPanel(x.quantized, num_rows, w, panel, width, y, y_stride);
    return;
  }
  const GemmPanelFn kernel =
      ActiveKernels().gemm_panel[x.dtype == DType::kF32 ? 0 : 1]
                                [static_cast<int>(w.format())];
  kernel({.x = x.data,
          .x_stride = x.stride,
          .num_rows = num_rows,
          .panel = w.panel(panel),
          .k = w.k(),
          .width = width,
          .y = y,
          .y_stride = y_stride});
}

void GemmPanels(const ActivationView& x, int64_t num_rows,
                const PackedMatrix& w, int64_t first_panel, int64_t last_panel,
                float* y, int64_t y_stride) {
  for (int64_t p = first_panel; p < last_panel; ++p) {
    GemmPanel(x, num_rows, w, p, y + p * kPanelWidth, y_stride);
  }
}

void Gemm(const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
          float* y, int64_t y_stride, WorkerPool& pool) {
  const int64_t panels = w.num_panels();
  if (num_rows == 0 || panels == 0) return;
  const int64_t parts = RowParts(num_rows, panels, pool.num_threads());
  pool.ParallelFor(panels * parts, [&](int64_t task) {
    const int64_t panel = task / parts;
    const int64_t part = task % parts;
    const int64_t begin = num_rows * part / parts;
    const int64_t end = num_rows * (part + 1) / parts;
    GemmPanels(RowsFrom(x, begin), end - begin, w, panel, panel + 1,
               y + begin * y_stride, y_stride);
  });
}

absl::string_view SumOrder(WeightFormat format) {
  if (IsQuantized(format)) return "integer";
  if (format == WeightFormat::kBF16) {
    if (ActiveIsa() == Isa::kAmx) return "tiles";
    if (ActiveIsa() == Isa::kAvx512BF16) return "pairs";
  }
  return "chain";
}

}  // namespace expertmesh
