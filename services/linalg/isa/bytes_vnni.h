#pragma once

// Sums of byte products in AVX-512 with VNNI.

#include "services/linalg/isa/bytes_avx512.h"

namespace expertmesh {
namespace {

struct VnniProduct {
  static constexpr bool kTakesZero = false;
  static constexpr int kMaxRows = 6;

  struct Four {
    EXPERTMESH_INLINE explicit Four(const uint8_t* x) {
      int32_t four;
      __builtin_memcpy(&four, x, 4);
      v = _mm512_set1_epi32(four);
    }
    __m512i v;
  };

  // x unsigned, w signed. As assembly, because GCC 12 keeps the accumulators of
  // the intrinsic in memory.
  static EXPERTMESH_INLINE void Add(__m512i& acc, Four x, __m512i w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x.v), "v"(w));
  }
};

using VnniBytes = Avx512Bytes<VnniProduct>;

}  // namespace
}  // namespace expertmesh
