#pragma once

// Sums of byte products in AVX2; see quantized_body.h.

#include <immintrin.h>

#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

struct Avx2Bytes {
  static constexpr bool kTakesZero = true;
  static constexpr int kMaxRows = 4;
  static constexpr int kInt4Rows = 0;  // always unpacked

  static void Dot(const uint8_t* x, int64_t x_stride, int rows,
                  const int8_t* codes, int64_t k, int32_t* sums) {
    for (int64_t column = 0; column < kPanelWidth; column += 16) {
      WithRows(rows, [&](auto count) {
        DotTile<decltype(count)::value>(x, x_stride, codes + column * 4, k,
                                        sums + column);
      });
    }
  }

  static void Unpack(const uint8_t* blocks, int64_t k, int8_t* codes) {
    for (int64_t i = 0; i < k; i += kInt4Group) {
      const uint8_t* block = blocks + i / 64 * kInt4BlockBytes;
      const uint8_t* steps = block + i % 64 / kInt4Group * kPanelWidth;
      for (int64_t column = 0; column < kPanelWidth; column += 8) {
        UnpackGroup(steps + column,
                    block + kInt4StepBytes + i % 64 * 32 + column * 4,
                    codes + i * kPanelWidth + column * 4);
      }
    }
  }

 private:
  template <typename Body>
  static EXPERTMESH_INLINE void WithRows(int rows, Body body) {
    WithRowCount<kMaxRows>(rows, body);
  }

  static EXPERTMESH_INLINE __m256i LoadBytes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }

  // Of four bytes each. The instruction takes unsigned by signed and saturates
  // sums of two, so the sign goes over to the weights: 2 · 128 · 127 fits.
  template <int kRows>
  static EXPERTMESH_INLINE void DotTile(const uint8_t* x, int64_t x_stride,
                                        const int8_t* codes, int64_t k,
                                        int32_t* sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i zero = _mm256_set1_epi8(-128);
    __m256i acc[kRows][2];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      acc[r][0] = _mm256_setzero_si256();
      acc[r][1] = _mm256_setzero_si256();
    }
    for (int64_t i = 0; i < k; i += 4) {
      const int8_t* at = codes + i * kPanelWidth;
      const __m256i w[2] = {LoadBytes(at), LoadBytes(at + 32)};
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, x + r * x_stride + i, 4);
        const __m256i v =
            _mm256_xor_si256(_mm256_set1_epi32(four), zero);  // signed
        const __m256i magnitude = _mm256_abs_epi8(v);
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
          const __m256i pairs =
              _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w[c], v));
          acc[r][c] =
              _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) {
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(sums + r * kPanelWidth + c * 8),
            acc[r][c]);
      }
    }
  }

  // Eight outputs of 32 k. See bytes_avx512.h for the arithmetic.
  static EXPERTMESH_INLINE void UnpackGroup(const uint8_t* steps,
                                            const uint8_t* packed,
                                            int8_t* codes) {
    __m256i step = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(steps)));
    step = _mm256_or_si256(step, _mm256_slli_epi32(step, 16));
    const __m256i m = _mm256_and_si256(step, _mm256_set1_epi16(15));
    const __m256i ones = _mm256_set1_epi16(0x101);
    const __m256i zero = _mm256_mullo_epi16(
        m,
        _mm256_sub_epi16(_mm256_set1_epi16(kInt4Zero * 0x101),
                         _mm256_mullo_epi16(_mm256_srli_epi16(step, 4), ones)));
    const __m256i low = _mm256_set1_epi8(15);
    for (int step = 0; step < kInt4Group / 8; ++step) {
      const __m256i both = LoadBytes(packed + step * 4 * kPanelWidth);
      const __m256i halves[2] = {
          _mm256_and_si256(both, low),
          _mm256_and_si256(_mm256_srli_epi16(both, 4), low)};
      for (int half = 0; half < 2; ++half) {
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(codes +
                                       (2 * step + half) * 4 * kPanelWidth),
            _mm256_sub_epi8(_mm256_mullo_epi16(halves[half], m), zero));
      }
    }
  }
};

}  // namespace
}  // namespace expertmesh
