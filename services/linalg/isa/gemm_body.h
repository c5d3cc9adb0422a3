#pragma once

// The panel product, written once over the lanes of a simd_*.h that the
// including file has chosen.
//
// Every output is one accumulator that takes k ascending, two at a time. Row
// tiles, column tiles and blocks of k only decide when an accumulator is in a
// register and when in y; a round trip through y is exact.

namespace expertmesh {
namespace {

constexpr int kPanelCols = 4;  // of 16 outputs
// k taken at a time over all rows: a block of a panel is 256 KiB of f32 and
// stays in the L2 cache while the rows pass.
constexpr int64_t kBlockK = 1024;
// How far ahead of use weights are fetched. The hardware stops at each page.
constexpr int64_t kPrefetchBytes = 2048;

// Fetches what lies kPrefetchBytes after one step's weights.
template <typename T>
EXPERTMESH_INLINE void Prefetch(const T* w) {
  const char* at = reinterpret_cast<const char*>(w) + kPrefetchBytes;
#pragma GCC unroll 8
  for (unsigned i = 0; i < 128 * sizeof(T); i += 64) __builtin_prefetch(at + i);
}

// A step of k takes two values, k = 2p and 2p + 1: the even and the odd half.
// kHalf chooses one, so that the weights of a half need kCols registers only.

// Weights of 16 outputs.
struct F32Weights {
  using Element = float;
  template <int kHalf>
  static EXPERTMESH_INLINE F32x16 Get(const float* w, int64_t p, int col) {
    return Load(w + p * 128 + kHalf * 64 + col * 16);
  }
};
struct BF16Weights {
  using Element = uint16_t;
  template <int kHalf>
  static EXPERTMESH_INLINE F32x16 Get(const uint16_t* w, int64_t p, int col) {
    return LoadBF16Half<kHalf>(w + p * 128 + col * 32);
  }
};
struct F16Weights {
  using Element = uint16_t;
  template <int kHalf>
  static EXPERTMESH_INLINE F32x16 Get(const uint16_t* w, int64_t p, int col) {
    return LoadF16Half<kHalf>(w + p * 128 + col * 32);
  }
};

// One activation in all lanes.
struct F32Acts {
  using Element = float;
  template <int kHalf>
  static EXPERTMESH_INLINE F32x16 Get(const float* x, int64_t p) {
    return Broadcast(x[2 * p + kHalf]);
  }
  static EXPERTMESH_INLINE F32x16 GetLast(const float* x, int64_t p) {
    return Broadcast(x[2 * p]);
  }
};
struct BF16Acts {
  using Element = uint16_t;
  template <int kHalf>
  static EXPERTMESH_INLINE F32x16 Get(const uint16_t* x, int64_t p) {
    return BroadcastBF16Half<kHalf>(x + 2 * p);
  }
  static EXPERTMESH_INLINE F32x16 GetLast(const uint16_t* x, int64_t p) {
    const uint16_t pair[2] = {x[2 * p], 0};  // nothing follows it in memory
    return BroadcastBF16Half<0>(pair);
  }
};

// The arithmetic that every instruction set shares: a chain of fused
// multiply-adds. The padding after an odd k adds nothing: it is left out.
template <typename WeightsT, typename ActsT>
struct FmaChain {
  using Weights = WeightsT;
  using Acts = ActsT;
  static constexpr int kHalves = 2;
  static EXPERTMESH_INLINE F32x16 Step(F32x16 acc, const F32x16& w,
                                       const F32x16& x) {
    return Fma(x, w, acc);
  }
};

template <typename Math>
using WeightOf = typename Math::Weights::Element;
template <typename Math>
using ActOf = typename Math::Acts::Element;

template <int kRows>
struct RowCount {
  static constexpr int value = kRows;
};

// Calls body(RowCount<rows>()), rows being 1 to kTileRows.
template <int kRows = kTileRows, typename Body>
EXPERTMESH_INLINE void WithRowCount(int rows, Body body) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return WithRowCount<kRows - 1>(rows, body);
  }
  body(RowCount<kRows>());
}

// One half of step p (or, with kLast, the end of an odd k) for a tile.
template <typename Math, int kRows, int kCols, int kHalf, bool kLast = false>
EXPERTMESH_INLINE void HalfStep(F32x16 (&acc)[kRows][kCols],
                                const ActOf<Math>* x, int64_t x_stride,
                                const WeightOf<Math>* w, int64_t p) {
  decltype(Math::Weights::template Get<kHalf>(w, p, 0)) weights[kCols];
#pragma GCC unroll 8
  for (int c = 0; c < kCols; ++c) {
    weights[c] = Math::Weights::template Get<kHalf>(w, p, c);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const ActOf<Math>* row = x + r * x_stride;
    const auto act = [&] {
      if constexpr (kLast) {
        return Math::Acts::GetLast(row, p);
      } else {
        return Math::Acts::template Get<kHalf>(row, p);
      }
    }();
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      acc[r][c] = Math::Step(acc[r][c], weights[c], act);
    }
  }
}

// kRows rows by kCols * 16 outputs over k values of k. `resume` takes up the
// sums that y holds.
template <typename Math, int kRows, int kCols>
void Tile(const ActOf<Math>* x, int64_t x_stride, const WeightOf<Math>* w,
          int64_t k, bool resume, float* y, int64_t y_stride) {
  F32x16 acc[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      acc[r][c] = resume ? Load(y + r * y_stride + c * 16) : Broadcast(0.0f);
    }
  }
  for (int64_t p = 0; p < k / 2; ++p) {
    Prefetch(w + p * 128);
    HalfStep<Math, kRows, kCols, 0>(acc, x, x_stride, w, p);
    if constexpr (Math::kHalves == 2) {
      HalfStep<Math, kRows, kCols, 1>(acc, x, x_stride, w, p);
    }
  }
  if (k % 2 != 0) {
    HalfStep<Math, kRows, kCols, 0, true>(acc, x, x_stride, w, k / 2);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) Store(y + r * y_stride + c * 16, acc[r][c]);
  }
}

// kRows rows by the 64 outputs of a panel.
template <typename Math, int kRows>
void TileAcrossPanel(const ActOf<Math>* x, int64_t x_stride,
                     const WeightOf<Math>* w, int64_t k, bool resume, float* y,
                     int64_t y_stride) {
  constexpr int kCols = TileCols(kRows);
  // Elements of one column of 16 outputs: pairs interleave 16-bit weights.
  constexpr int kColElements = sizeof(WeightOf<Math>) == 4 ? 16 : 32;
  for (int c = 0; c < kPanelCols; c += kCols) {
    Tile<Math, kRows, kCols>(x, x_stride, w + c * kColElements, k, resume,
                             y + c * 16, y_stride);
  }
}

template <typename Math>
void TileOfRows(int rows, const ActOf<Math>* x, int64_t x_stride,
                const WeightOf<Math>* w, int64_t k, bool resume, float* y,
                int64_t y_stride) {
  WithRowCount(rows, [&](auto count) {
    TileAcrossPanel<Math, decltype(count)::value>(x, x_stride, w, k, resume, y,
                                                  y_stride);
  });
}

// The last panel of a matrix may have fewer real outputs: its tiles go through
// a full-width copy, so that y's neighbours are neither read nor written.
template <typename Math>
void NarrowTile(int rows, const ActOf<Math>* x, int64_t x_stride,
                const WeightOf<Math>* w, int64_t k, bool resume, float* y,
                int64_t y_stride, int64_t width) {
  float tile[kTileRows * 64] = {};
  for (int r = 0; resume && r < rows; ++r) {
    __builtin_memcpy(tile + r * 64, y + r * y_stride, width * sizeof(float));
  }
  TileOfRows<Math>(rows, x, x_stride, w, k, resume, tile, 64);
  for (int r = 0; r < rows; ++r) {
    __builtin_memcpy(y + r * y_stride, tile + r * 64, width * sizeof(float));
  }
}

template <typename Math>
void GemmPanel(const GemmPanelArgs& args) {
  const auto* x = static_cast<const ActOf<Math>*>(args.x);
  const auto* panel = static_cast<const WeightOf<Math>*>(args.panel);
  int64_t k_begin = 0;
  do {  // once even for k = 0, whose product is zero
    const int64_t left = args.k - k_begin;
    const int64_t k = left < kBlockK ? left : kBlockK;
    const auto* w = panel + k_begin * 64;
    // Rows in tiles of nearly equal height: 8 rows as 4 + 4, not 6 + 2.
    const int64_t tiles = (args.num_rows + kTileRows - 1) / kTileRows;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = args.num_rows * t / tiles;
      const int rows = static_cast<int>(args.num_rows * (t + 1) / tiles - row);
      const auto* tile_x = x + row * args.x_stride + k_begin;
      float* tile_y = args.y + row * args.y_stride;
      if (args.width == 64) {
        TileOfRows<Math>(rows, tile_x, args.x_stride, w, k, k_begin > 0, tile_y,
                         args.y_stride);
      } else {
        NarrowTile<Math>(rows, tile_x, args.x_stride, w, k, k_begin > 0, tile_y,
                         args.y_stride, args.width);
      }
    }
    k_begin += kBlockK;
  } while (k_begin < args.k);
}

}  // namespace
}  // namespace expertmesh
