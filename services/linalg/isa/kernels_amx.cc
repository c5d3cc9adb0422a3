#include "services/linalg/isa/kernels.h"
#include "services/linalg/isa/simd_avx512.h"
// The bodies take their lanes from the header above.
#include "services/linalg/isa/gemm_body.h"
#include "services/linalg/isa/vector_body.h"
// attention_body.h uses vector_body.h.
#include "services/linalg/isa/attention_body.h"
#include "services/linalg/isa/bytes_amx.h"
#include "services/linalg/isa/codes_body.h"
#include "services/linalg/isa/few_rows_amx.h"
#include "services/linalg/isa/quantized_body.h"
#include "services/linalg/isa/table_body.h"

namespace expertmesh {
namespace {

// bf16 by bf16: up to 32 rows times a panel, into full-width sums.
void MultiplyBF16Rows(const GemmPanelArgs& args, int64_t first_row, int rows,
                      float* sums, int64_t sums_stride) {
  constexpr int64_t kStep = kTileBytes / sizeof(uint16_t);
  const auto* x =
      static_cast<const uint16_t*>(args.x) + first_row * args.x_stride;
  // The last step of a k that is no multiple of 32: x ends within it.
  alignas(64) uint16_t tail[2 * kTileHeight][kStep] = {};
  const int64_t rest = args.k % kStep;
  for (int r = 0; rest != 0 && r < rows; ++r) {
    __builtin_memcpy(tail[r], x + r * args.x_stride + args.k - rest,
                     rest * sizeof(uint16_t));
  }
  const TileArgs tiles = {
      .x = reinterpret_cast<const char*>(x),
      .x_stride = args.x_stride * static_cast<int64_t>(sizeof(uint16_t)),
      .x_tail = rest != 0 ? reinterpret_cast<const char*>(tail) : nullptr,
      .panel = static_cast<const char*>(args.panel),
      .steps = PaddedHalfK(args.k) / kStep,
      .sums = reinterpret_cast<char*>(sums),
      .sums_stride = sums_stride * static_cast<int64_t>(sizeof(float))};
  if (rows <= kFewRows) return MultiplyFewRows(tiles, rows);
  MultiplyTiles<BF16Product>(tiles, rows);
}

void GemmPanelBF16(const GemmPanelArgs& args) {
  constexpr int64_t kRows = 2 * kTileHeight;
  const int64_t turns = (args.num_rows + kRows - 1) / kRows;
  for (int64_t t = 0; t < turns; ++t) {
    const int64_t row = args.num_rows * t / turns;
    const int rows = static_cast<int>(args.num_rows * (t + 1) / turns - row);
    float* y = args.y + row * args.y_stride;
    if (args.width == kPanelWidth) {
      MultiplyBF16Rows(args, row, rows, y, args.y_stride);
      continue;
    }
    // The last panel of a matrix may have fewer real outputs.
    alignas(64) float sums[kRows * kPanelWidth];
    MultiplyBF16Rows(args, row, rows, sums, kPanelWidth);
    for (int r = 0; r < rows; ++r) {
      __builtin_memcpy(y + r * args.y_stride, sums + r * kPanelWidth,
                       args.width * sizeof(float));
    }
  }
}

constexpr Kernels MakeAmxTable() {
  Kernels table = MakeTable<AmxBytes>();
  table.gemm_panel[1][1] = GemmPanelBF16;
  return table;
}

}  // namespace

constinit const Kernels kAmxKernels = MakeAmxTable();

}  // namespace expertmesh
