#include "services/linalg/gemm.h"

#include <algorithm>

#include "services/linalg/isa/kernels.h"

namespace expertmesh {
namespace {

// Rows of one task at least: fewer would read a panel too often.
constexpr int64_t kMinTaskRows = 48;

const void* RowsFrom(const ActivationView& x, int64_t row) {
  return static_cast<const std::byte*>(x.data) +
         row * x.stride * static_cast<int64_t>(DTypeBytes(x.dtype));
}

// Parts to cut the rows into, so that panels times parts keep every thread
// busy to the end.
int64_t RowParts(int64_t num_rows, int64_t num_panels, int num_threads) {
  if (num_threads == 1) return 1;
  const int64_t wanted = (4 * num_threads + num_panels - 1) / num_panels;
  return std::clamp<int64_t>(num_rows / kMinTaskRows, 1, wanted);
}

}  // namespace

void GemmPanel(const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
               int64_t panel, float* y, int64_t y_stride) {
  const GemmPanelFn kernel =
      ActiveKernels().gemm_panel[x.dtype == DType::kF32 ? 0 : 1]
                                [static_cast<int>(w.dtype())];
  kernel({.x = x.data,
          .x_stride = x.stride,
          .num_rows = num_rows,
          .panel = w.panel(panel),
          .k = w.k(),
          .width = std::min(kPanelWidth, w.n() - panel * kPanelWidth),
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
    GemmPanels({RowsFrom(x, begin), x.dtype, x.stride}, end - begin, w, panel,
               panel + 1, y + begin * y_stride, y_stride);
  });
}

}  // namespace expertmesh
