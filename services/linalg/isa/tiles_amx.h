#pragma once

// Products in AMX tiles: 16 rows by 16 outputs by 64 bytes of k an instruction.
//
// One product is of up to 32 rows with a panel. Tiles 0 to 3 hold sums, 4 and 5
// rows of activations, 6 and 7 weights. Up to 16 rows take the four columns of
// the panel at once, so that few rows read it once; more take two by two. Every
// sum takes its tiles of k ascending, whichever way: all have the same order.

#include <immintrin.h>

#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

inline constexpr int kTileHeight = 16;     // rows
inline constexpr int64_t kTileBytes = 64;  // of a row, along k
inline constexpr int64_t kPanelRow = 256;  // 64 outputs by 4 bytes of k
inline constexpr int64_t kPanelStep = kPanelRow * kTileBytes / 4;

inline constexpr int64_t kPrefetchSteps = 4;
// Steps that both halves of a panel take before the next ones: 32 rows of them
// stay in the L1 cache.
inline constexpr int64_t kBlockSteps = 16;

// What a tile product multiplies, in bytes.
struct TileArgs {
  const char* x;  // [rows][steps][64], rows x_stride bytes apart
  int64_t x_stride;
  // The activations of the last step, [rows][64], where those of x end within
  // it; or null.
  const char* x_tail;
  const char* panel;  // [steps][16][64 outputs][4 bytes]
  int64_t steps;
  char* sums;  // [rows][64 outputs][4 bytes], rows sums_stride bytes apart
  int64_t sums_stride;
};

// An instruction takes its tiles as constants.
#define EXPERTMESH_TILE_PRODUCT(Name, instruction) \
  struct Name {                                    \
    static void Add046() { instruction(0, 4, 6); } \
    static void Add147() { instruction(1, 4, 7); } \
    static void Add246() { instruction(2, 4, 6); } \
    static void Add347() { instruction(3, 4, 7); } \
    static void Add256() { instruction(2, 5, 6); } \
    static void Add357() { instruction(3, 5, 7); } \
  };
EXPERTMESH_TILE_PRODUCT(BytesProduct, _tile_dpbusd)  // unsigned by signed
EXPERTMESH_TILE_PRODUCT(BF16Product, _tile_dpbf16ps)
#undef EXPERTMESH_TILE_PRODUCT

// This thread's tiles, set up for `rows` rows as long as it lives.
class TileScope {
 public:
  EXPERTMESH_INLINE explicit TileScope(int rows) {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const bool is_low = rows <= kTileHeight;
    const int upper = is_low ? rows : kTileHeight;
    const int lower = is_low ? rows : rows - kTileHeight;
    const int heights[8] = {upper, upper, lower,       lower,
                            upper, lower, kTileHeight, kTileHeight};
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = kTileBytes;
      config.rows[tile] = static_cast<uint8_t>(heights[tile]);
    }
    // The compiler sees only the first bytes of it read.
    asm volatile("" ::: "memory");
    _tile_loadconfig(&config);
  }
  EXPERTMESH_INLINE ~TileScope() { _tile_release(); }
};

// Activations of one step.
struct TileRows {
  EXPERTMESH_INLINE TileRows(const TileArgs& args, int64_t step) {
    const bool is_tail = args.x_tail != nullptr && step + 1 == args.steps;
    data = is_tail ? args.x_tail : args.x + step * kTileBytes;
    stride = is_tail ? kTileBytes : args.x_stride;
  }
  const char* data;
  int64_t stride;
};

// Of up to 16 rows, which wait for memory: fetches lines 2 KiB ahead of a
// column of weights into the L1 cache, a few at a time between tile loads: the
// other half of its tile and the first of the next step's. Further ahead, and
// into the L2 cache, was slower.
EXPERTMESH_INLINE void PrefetchColumn(const char* w) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < kPanelStep; i += kPanelRow) {
    __builtin_prefetch(w + kPrefetchBytes + i);
  }
}

EXPERTMESH_INLINE void LoadColumn6(const char* w) {
  PrefetchColumn(w);
  _tile_loadd(6, w, kPanelRow);
}
EXPERTMESH_INLINE void LoadColumn7(const char* w) {
  PrefetchColumn(w);
  _tile_loadd(7, w, kPanelRow);
}

// Of more rows: fetches the panel well ahead, into the L2 cache, which waits
// for more lines at a time than the L1 does.
EXPERTMESH_INLINE void PrefetchStep(const char* w) {
  constexpr int kToL2 = 2;
  const char* at = w + kPrefetchSteps * kPanelStep;
#pragma GCC unroll 64
  for (int64_t i = 0; i < kPanelStep; i += 64) {
    __builtin_prefetch(at + i, 0, kToL2);
  }
}

// 1 to 16 rows.
template <typename Product>
void MultiplyLow(const TileArgs& args) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const char* w = args.panel;
  for (int64_t step = 0; step < args.steps; ++step, w += kPanelStep) {
    const TileRows x(args, step);
    _tile_loadd(4, x.data, x.stride);
    LoadColumn6(w);
    LoadColumn7(w + 64);
    Product::Add046();
    Product::Add147();
    LoadColumn6(w + 128);
    LoadColumn7(w + 192);
    Product::Add246();
    Product::Add347();
  }
  _tile_stored(0, args.sums, args.sums_stride);
  _tile_stored(1, args.sums + 64, args.sums_stride);
  _tile_stored(2, args.sums + 128, args.sums_stride);
  _tile_stored(3, args.sums + 192, args.sums_stride);
}

// 17 to 32 rows, steps [first, last), columns [column, column + 128) of a panel
// row.
template <typename Product>
void MultiplyHigh(const TileArgs& args, int64_t first, int64_t last,
                  int64_t column) {
  char* sums = args.sums + column;
  char* below = sums + kTileHeight * args.sums_stride;
  if (first == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, args.sums_stride);
    _tile_loadd(1, sums + 64, args.sums_stride);
    _tile_loadd(2, below, args.sums_stride);
    _tile_loadd(3, below + 64, args.sums_stride);
  }
  const char* w = args.panel + first * kPanelStep + column;
  for (int64_t step = first; step < last; ++step, w += kPanelStep) {
    if (column == 0) PrefetchStep(w);
    const TileRows x(args, step);
    _tile_loadd(4, x.data, x.stride);
    _tile_loadd(6, w, kPanelRow);
    _tile_loadd(7, w + 64, kPanelRow);
    Product::Add046();
    Product::Add147();
    _tile_loadd(5, x.data + kTileHeight * x.stride, x.stride);
    Product::Add256();
    Product::Add357();
  }
  _tile_stored(0, sums, args.sums_stride);
  _tile_stored(1, sums + 64, args.sums_stride);
  _tile_stored(2, below, args.sums_stride);
  _tile_stored(3, below + 64, args.sums_stride);
}

// 1 to 32 rows.
template <typename Product>
void MultiplyTiles(const TileArgs& args, int rows) {
  const TileScope tiles(rows);
  if (rows <= kTileHeight) {
    MultiplyLow<Product>(args);
    return;
  }
  int64_t first = 0;
  do {  // once even for no steps, whose product is zero
    const int64_t end = first + kBlockSteps;
    const int64_t last = end < args.steps ? end : args.steps;
    MultiplyHigh<Product>(args, first, last, 0);
    MultiplyHigh<Product>(args, first, last, kPanelRow / 2);
    first = last;
  } while (first < args.steps);
}

}  // namespace
}  // namespace expertmesh
