#pragma once

// What a tile product of bf16 gives, by AVX-512, for one or two rows: tiles are
// made for sixteen, and with one they take about a twentieth longer to read the
// weights.
//
// The order of TDPBF16PS (Intel's Software Developer's Manual): over the 32 k
// of a tile, one chain of fused multiply-adds of the even k and one of the odd
// ones, from zero; their sum is added to what the tiles before gave. Denormals
// are zeros, in and out.

#include <immintrin.h>

#include "services/linalg/isa/tiles_amx.h"

namespace expertmesh {
namespace {

// Denormals are zeros as long as it lives.
class FlushDenormals {
 public:
  EXPERTMESH_INLINE FlushDenormals() : before_(_mm_getcsr()) {
    constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    _mm_setcsr(before_ | kFlushToZero | kDenormalsAreZero);
    // What follows reads memory, and may not be moved before this.
    asm volatile("" ::: "memory");
  }
  EXPERTMESH_INLINE ~FlushDenormals() {
    asm volatile("" ::: "memory");
    _mm_setcsr(before_);
  }

 private:
  const unsigned before_;
};

// More are no slower in tiles.
inline constexpr int kFewRows = 2;

template <int kRows>
EXPERTMESH_INLINE void MultiplyRowsAtOnce(const TileArgs& args) {
  constexpr int kColumns = 4;  // of 16 outputs
  constexpr int kPairs = 16;   // of k, in a step
  const FlushDenormals flush;
  const __m512i odd_half = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  __m512 sums[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sums[r][c] = _mm512_setzero_ps();
  }
  const char* w = args.panel;
  for (int64_t step = 0; step < args.steps; ++step, w += kPanelStep) {
    const TileRows x(args, step);
    __m512 even[kRows][kColumns], odd[kRows][kColumns];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        even[r][c] = odd[r][c] = _mm512_setzero_ps();
      }
    }
    for (int pair = 0; pair < kPairs; ++pair) {
      const char* ahead = w + pair * kPanelRow + kPrefetchBytes;
#pragma GCC unroll 4
      for (int i = 0; i < kPanelRow; i += 64) __builtin_prefetch(ahead + i);
      __m512 x_even[kRows], x_odd[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int both;
        __builtin_memcpy(&both, x.data + r * x.stride + pair * sizeof(both),
                         sizeof(both));
        const __m512i wide = _mm512_set1_epi32(both);
        x_even[r] = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
        x_odd[r] = _mm512_castsi512_ps(_mm512_and_epi32(wide, odd_half));
      }
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        const __m512i both =
            _mm512_load_si512(w + pair * kPanelRow + c * kTileBytes);
        const __m512 w_even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        const __m512 w_odd =
            _mm512_castsi512_ps(_mm512_and_epi32(both, odd_half));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          even[r][c] = _mm512_fmadd_ps(x_even[r], w_even, even[r][c]);
          odd[r][c] = _mm512_fmadd_ps(x_odd[r], w_odd, odd[r][c]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        sums[r][c] =
            _mm512_add_ps(sums[r][c], _mm512_add_ps(even[r][c], odd[r][c]));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      _mm512_storeu_ps(args.sums + r * args.sums_stride + c * kTileBytes,
                       sums[r][c]);
    }
  }
}

// 1 to kFewRows rows.
EXPERTMESH_INLINE void MultiplyFewRows(const TileArgs& args, int rows) {
  rows == 1 ? MultiplyRowsAtOnce<1>(args) : MultiplyRowsAtOnce<2>(args);
}

}  // namespace
}  // namespace expertmesh
