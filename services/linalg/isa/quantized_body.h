#pragma once

// Products of quantized activations with int8 and int4 panels
// (isa/panel_layout.h), written once over the sums of byte products that
// `Bytes` gives: one of bytes_*.h.
//
// Every sum is of integers below 2^31 and therefore exact: instruction sets,
// tiles and blocks cannot change a bit. The only roundings are those of
//   y = (float(sum - offset) · scale of the output) · scale of the row.
//
// What `Bytes` has, activations x [rows, x_stride] being unsigned, codes
// [k / 4][64][4] signed, k a multiple of 64:
//   kTakesZero            whether Dot and DotInt4 take kActivationZero off the
//                         activations, so that no offset is left in the sums
//   kMaxRows              rows of one call
//   Dot(x, x_stride, rows, codes, k, sums)   sums [rows][64] of x times codes
//   kInt4Rows             up to so many rows are multiplied with int4 blocks as
//                         they lie; for more, these are unpacked first
//   kInt4TileRows         rows of one call of DotInt4
//   DotInt4(x, x_stride, rows, blocks, k, sums)   where kInt4Rows > 0
//   Unpack(blocks, k, codes)                 int4 blocks to codes

#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

// Sums to products: [rows][64] to y [rows, width].
template <typename Bytes>
EXPERTMESH_INLINE void FinishSums(const QuantizedPanelArgs& args,
                                  const int32_t* sums, int64_t first_row,
                                  int rows) {
  const auto& header = *static_cast<const QuantizedPanelHeader*>(args.panel);
  static constexpr int32_t kNoOffsets[kPanelWidth] = {};
  const int32_t* offsets = Bytes::kTakesZero ? kNoOffsets : header.offsets;
  for (int r = 0; r < rows; ++r) {
    const F32x16 row_scale = Broadcast(args.x_scales[first_row + r]);
    float* y = args.y + (first_row + r) * args.y_stride;
    for (int64_t c = 0; c < args.width; c += 16) {
      const F32x16 sum = Difference(sums + r * kPanelWidth + c, offsets + c);
      const F32x16 value = Mul(Mul(sum, Load(header.scales + c)), row_scale);
      if (c + 16 <= args.width) {
        Store(y + c, value);
      } else {
        StoreFirst(y + c, args.width - c, value);
      }
    }
  }
}

// Calls dot(x, rows, sums) for all rows in turns of nearly equal height.
template <typename Bytes, int kMaxRows, typename Dot>
EXPERTMESH_INLINE void ForRowTurns(const QuantizedPanelArgs& args, Dot dot) {
  alignas(64) int32_t sums[kMaxRows * kPanelWidth];
  const int64_t turns = (args.num_rows + kMaxRows - 1) / kMaxRows;
  for (int64_t t = 0; t < turns; ++t) {
    const int64_t row = args.num_rows * t / turns;
    const int rows = static_cast<int>(args.num_rows * (t + 1) / turns - row);
    dot(args.x + row * args.x_stride, rows, sums);
    FinishSums<Bytes>(args, sums, row, rows);
  }
}

template <typename Bytes>
void MultiplyCodes(const QuantizedPanelArgs& args, const int8_t* codes) {
  ForRowTurns<Bytes, Bytes::kMaxRows>(
      args, [&](const uint8_t* x, int rows, int32_t* sums) {
        Bytes::Dot(x, args.x_stride, rows, codes, args.k, sums);
      });
}

const void* AfterHeader(const void* panel) {
  return static_cast<const char*>(panel) + sizeof(QuantizedPanelHeader);
}

template <typename Bytes>
void GemmPanelInt8(const QuantizedPanelArgs& args) {
  MultiplyCodes<Bytes>(args,
                       static_cast<const int8_t*>(AfterHeader(args.panel)));
}

template <typename Bytes>
void GemmPanelInt4(const QuantizedPanelArgs& args) {
  const auto* blocks = static_cast<const uint8_t*>(AfterHeader(args.panel));
  if constexpr (Bytes::kInt4Rows > 0) {
    if (args.num_rows <= Bytes::kInt4Rows) {
      ForRowTurns<Bytes, Bytes::kInt4TileRows>(
          args, [&](const uint8_t* x, int rows, int32_t* sums) {
            Bytes::DotInt4(x, args.x_stride, rows, blocks, args.k, sums);
          });
      return;
    }
  }
  Bytes::Unpack(blocks, args.k, args.scratch);
  MultiplyCodes<Bytes>(args, args.scratch);
}

// One row to codes, not padded; returns its scale. See vector_ops.h.
template <typename T>
EXPERTMESH_INLINE float RowToCodes(const T* x, int64_t n, uint8_t* codes) {
  // The largest magnitude, in any order, NaN before all.
  F32x16 magnitudes = Broadcast(0.0f);
  const auto look = [&](F32x16 v) {
    magnitudes = MaxAsInts(magnitudes, Magnitude(v));
  };
  ForSpans(
      n, [&](int64_t i) { look(Load(x + i)); },
      [&](int64_t i, int64_t count) { look(LoadFirst(x + i, count)); });
  float lanes[16];
  Store(lanes, magnitudes);
  float max = 0.0f;
  bool is_finite = true;
  for (const float lane : lanes) {
    is_finite = is_finite && lane <= 3.4028235e38f;
    max = lane > max ? lane : max;
  }
  // Too small to divide by: as good as zero.
  const bool is_zero = max < 1e-30f;
  const bool is_plain = is_finite && !is_zero;
  const F32x16 factor = Broadcast(is_plain ? 127.0f / max : 0.0f);
  if (is_plain) {
    ForSpans(
        n, [&](int64_t i) { StoreCodes(codes + i, Mul(Load(x + i), factor)); },
        [&](int64_t i, int64_t count) {
          uint8_t last[16];
          StoreCodes(last, Mul(LoadFirst(x + i, count), factor));
          __builtin_memcpy(codes + i, last, count);
        });
  } else {
    __builtin_memset(codes, kActivationZero, n);
  }
  if (is_plain) return max / 127.0f;
  return is_finite ? 0.0f : __builtin_nanf("");
}

template <typename T>
float QuantizeRow(const T* x, int64_t n, uint8_t* codes) {
  __builtin_memset(codes + n, kActivationZero, PaddedQuantizedK(n) - n);
  return RowToCodes(x, n, codes);
}

float QuantizeRowSigned(const float* x, int64_t n, int8_t* codes) {
  auto* bytes = reinterpret_cast<uint8_t*>(codes);
  const float scale = RowToCodes(x, n, bytes);
  for (int64_t i = 0; i < n; ++i) bytes[i] ^= kActivationZero;
  return scale;
}

}  // namespace
}  // namespace expertmesh
