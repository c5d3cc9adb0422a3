#pragma once

// Sums of byte products in AVX-512 without VNNI, by the steps of bytes_avx2.h.

#include "services/linalg/isa/bytes_avx512.h"

namespace expertmesh {
namespace {

struct PairsProduct {
  static constexpr bool kTakesZero = true;
  static constexpr int kMaxRows = 5;

  struct Four {
    EXPERTMESH_INLINE explicit Four(const uint8_t* x) {
      int32_t four;
      __builtin_memcpy(&four, x, 4);
      const __m512i v = _mm512_xor_si512(_mm512_set1_epi32(four),
                                         _mm512_set1_epi8(-128));  // signed
      magnitude = _mm512_abs_epi8(v);
      negative = _mm512_movepi8_mask(v);
    }
    __m512i magnitude;
    __mmask64 negative;
  };

  // The first instruction takes unsigned by signed and saturates sums of two,
  // so the sign goes over to the weights: 2 · 128 · 127 fits.
  static EXPERTMESH_INLINE void Add(__m512i& acc, Four x, __m512i w) {
    const __m512i pairs = _mm512_maddubs_epi16(
        x.magnitude,
        _mm512_mask_sub_epi8(w, x.negative, _mm512_setzero_si512(), w));
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
};

using Avx512BWBytes = Avx512Bytes<PairsProduct>;

}  // namespace
}  // namespace expertmesh
