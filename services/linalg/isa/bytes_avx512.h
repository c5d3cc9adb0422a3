#pragma once

// Sums of byte products in AVX-512; see quantized_body.h. `Product` says how
// four products become one sum:
//   kTakesZero       as in quantized_body.h
//   kMaxRows         rows whose sums fit the registers
//   Four(x)          four activations, the same for all outputs
//   Add(acc, x, w)   acc += sums of four products

#include <immintrin.h>

#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

// An int4 group's steps for 16 outputs. Two codes share a 16-bit lane and a
// multiplier, and 15 · 15 fits a byte: so one product multiplies both.
struct GroupScale {
  __m512i multiplier;  // in all 16-bit lanes of an output
  __m512i zero;        // zero · multiplier in all its bytes

  EXPERTMESH_INLINE explicit GroupScale(const uint8_t* steps) {
    __m512i step = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(steps)));
    step = _mm512_or_si512(step, _mm512_slli_epi32(step, 16));
    multiplier = _mm512_and_si512(step, _mm512_set1_epi16(15));
    const __m512i ones = _mm512_set1_epi16(0x101);
    zero = _mm512_mullo_epi16(
        multiplier,
        _mm512_sub_epi16(_mm512_set1_epi16(kInt4Zero * 0x101),
                         _mm512_mullo_epi16(_mm512_srli_epi16(step, 4), ones)));
  }

  // Codes in the low half of each byte to signed weights.
  EXPERTMESH_INLINE __m512i Low(__m512i codes) const {
    const __m512i low = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    return _mm512_sub_epi8(_mm512_mullo_epi16(low, multiplier), zero);
  }
  EXPERTMESH_INLINE __m512i High(__m512i codes) const {
    return Low(_mm512_srli_epi16(codes, 4));
  }
};

// [k / 4][64][4] codes, or int4 blocks, times kRows rows.
template <typename Product, int kRows>
EXPERTMESH_INLINE void DotCodes(const uint8_t* x, int64_t x_stride,
                                const int8_t* codes, int64_t k, int32_t* sums) {
  __m512i acc[kRows][4];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) acc[r][c] = _mm512_setzero_si512();
  }
  for (int64_t i = 0; i < k; i += 4) {
    const int8_t* at = codes + i * kPanelWidth;
    __m512i w[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      __builtin_prefetch(at + kPrefetchBytes + c * 64);
      w[c] = _mm512_loadu_si512(at + c * 64);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Product::Four four(x + r * x_stride + i);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) Product::Add(acc[r][c], four, w[c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      _mm512_storeu_si512(sums + r * kPanelWidth + c * 16, acc[r][c]);
    }
  }
}

template <typename Product, int kRows>
EXPERTMESH_INLINE void DotBlocks(const uint8_t* x, int64_t x_stride,
                                 const uint8_t* blocks, int64_t k,
                                 int32_t* sums) {
  __m512i acc[kRows][4];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) acc[r][c] = _mm512_setzero_si512();
  }
  for (int64_t i = 0; i < k; i += kInt4Group) {
    const uint8_t* block = blocks + i / 64 * kInt4BlockBytes;
    const uint8_t* steps = block + i % 64 / kInt4Group * kPanelWidth;
    const GroupScale scales[4] = {GroupScale(steps), GroupScale(steps + 16),
                                  GroupScale(steps + 32),
                                  GroupScale(steps + 48)};
    const uint8_t* packed = block + kInt4StepBytes + i % 64 * 32;
    for (int step = 0; step < kInt4Group / 8; ++step) {
      const uint8_t* at = packed + step * 4 * kPanelWidth;
      const uint8_t* x_at = x + i + step * 8;
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        __builtin_prefetch(at + kPrefetchBytes + c * 64);
        const __m512i both = _mm512_loadu_si512(at + c * 64);
        const __m512i low = scales[c].Low(both);
        const __m512i high = scales[c].High(both);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const uint8_t* four = x_at + r * x_stride;
          Product::Add(acc[r][c], typename Product::Four(four), low);
          Product::Add(acc[r][c], typename Product::Four(four + 4), high);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      _mm512_storeu_si512(sums + r * kPanelWidth + c * 16, acc[r][c]);
    }
  }
}

// The same for one row. Its codes are multiplied before their multiplier is,
// which takes fewer instructions for each of them, but a sum of its own for
// each group: with more rows these no longer fit the registers.
template <typename Product>
EXPERTMESH_INLINE void DotBlocksWithOneRow(const uint8_t* x,
                                           const uint8_t* blocks, int64_t k,
                                           int32_t* sums) {
  __m512i acc[4];
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) acc[c] = _mm512_setzero_si512();
  for (int64_t i = 0; i < k; i += kInt4Group) {
    const uint8_t* block = blocks + i / 64 * kInt4BlockBytes;
    const uint8_t* steps = block + i % 64 / kInt4Group * kPanelWidth;
    const uint8_t* packed = block + kInt4StepBytes + i % 64 * 32;
    __m512i step[4];
    __m512i zero[4];  // in all bytes of an output
    __m512i group[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      step[c] = _mm512_cvtepu8_epi32(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(steps + c * 16)));
      const __m512i is_lower = _mm512_mullo_epi32(_mm512_srli_epi32(step[c], 4),
                                                  _mm512_set1_epi32(0x1010101));
      zero[c] = _mm512_sub_epi8(_mm512_set1_epi8(kInt4Zero), is_lower);
      group[c] = _mm512_setzero_si512();
    }
#pragma GCC unroll 4
    for (int s = 0; s < kInt4Group / 8; ++s) {
      const uint8_t* at = packed + s * 4 * kPanelWidth;
      const typename Product::Four first(x + i + s * 8);
      const typename Product::Four second(x + i + s * 8 + 4);
      const __m512i low_halves = _mm512_set1_epi8(15);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        __builtin_prefetch(at + kPrefetchBytes + c * 64);
        const __m512i both = _mm512_loadu_si512(at + c * 64);
        const __m512i low = _mm512_and_si512(both, low_halves);
        const __m512i high =
            _mm512_and_si512(_mm512_srli_epi16(both, 4), low_halves);
        Product::Add(group[c], first, _mm512_sub_epi8(low, zero[c]));
        Product::Add(group[c], second, _mm512_sub_epi8(high, zero[c]));
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512i multiplier =
          _mm512_and_si512(step[c], _mm512_set1_epi32(kMaxInt4Multiplier));
      acc[c] =
          _mm512_add_epi32(acc[c], _mm512_mullo_epi32(group[c], multiplier));
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) _mm512_storeu_si512(sums + c * 16, acc[c]);
}

template <typename Product>
struct Avx512Bytes {
  static constexpr bool kTakesZero = Product::kTakesZero;
  static constexpr int kMaxRows = Product::kMaxRows;
  // Up to here the codes are unpacked in registers, once per tile of rows.
  static constexpr int kInt4Rows = 6;
  static constexpr int kInt4TileRows = 3;

  static void Dot(const uint8_t* x, int64_t x_stride, int rows,
                  const int8_t* codes, int64_t k, int32_t* sums) {
    WithRowCount<kMaxRows>(rows, [&](auto count) {
      DotCodes<Product, decltype(count)::value>(x, x_stride, codes, k, sums);
    });
  }

  static void DotInt4(const uint8_t* x, int64_t x_stride, int rows,
                      const uint8_t* blocks, int64_t k, int32_t* sums) {
    if (rows == 1) {
      DotBlocksWithOneRow<Product>(x, blocks, k, sums);
      return;
    }
    WithRowCount<kInt4TileRows>(rows, [&](auto count) {
      DotBlocks<Product, decltype(count)::value>(x, x_stride, blocks, k, sums);
    });
  }

  static void Unpack(const uint8_t* blocks, int64_t k, int8_t* codes) {
    for (int64_t i = 0; i < k; i += kInt4Group) {
      const uint8_t* block = blocks + i / 64 * kInt4BlockBytes;
      const uint8_t* steps = block + i % 64 / kInt4Group * kPanelWidth;
      const uint8_t* packed = block + kInt4StepBytes + i % 64 * 32;
      for (int c = 0; c < 4; ++c) {
        const GroupScale scale(steps + c * 16);
        for (int step = 0; step < kInt4Group / 8; ++step) {
          const __m512i both =
              _mm512_loadu_si512(packed + step * 4 * kPanelWidth + c * 64);
          int8_t* at = codes + (i + step * 8) * kPanelWidth + c * 64;
          _mm512_storeu_si512(at, scale.Low(both));
          _mm512_storeu_si512(at + 4 * kPanelWidth, scale.High(both));
        }
      }
    }
  }
};

}  // namespace
}  // namespace expertmesh
