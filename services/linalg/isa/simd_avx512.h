#pragma once

// Sixteen f32 lanes in one AVX-512 register. The meaning of each function is
// the same in all simd_*.h, to the bit:
//   Load, Store       unaligned; on uint16_t they widen from and round to bf16
//                     (nearest even, NaN stays a quiet NaN); Load of int8_t
//                     gives whole numbers
//   Fma(a, b, c)      a * b + c, rounded once
//   Max, Min(a, b)    b where the lanes do not compare (NaN)
//   ZeroUnlessAbove(a, x, limit)   a where x > limit or is NaN, else zero
//   SumLanes, MaxLanes   the upper half onto the lower, four times
//   ScaleByLowBits    x * 2^n, n being what was added to 1.5 * 2^23
//   Difference(a, b)  a - b of 32-bit integers, rounded to f32
//   Magnitude         without the sign
//   MaxAsInts(a, b)   of bit patterns: of magnitudes, NaN is the largest
//   StoreCodes        to the nearest integers, ties to even, plus 128, as bytes
//   StoreBytes4       whole numbers from -128 to 255, lane i to p[4 i] onwards
//   SelectLess        x where a < b, else y
//   Load*Half         the even (0) or odd (1) ones of 32 16-bit values
//   BroadcastBF16Half the first or second of two neighbours in all lanes
// Everything is in an unnamed namespace because each instruction set compiles
// its own copy.

#include <immintrin.h>

#include <cstdint>

#define EXPERTMESH_INLINE inline __attribute__((always_inline))

#include "services/linalg/isa/simd_fold.h"

namespace expertmesh {
namespace {

struct F32x16 {
  __m512 v;
};

// 6 x 4 accumulators of 32 registers.
constexpr int kTileRows = 6;
constexpr int TileCols(int rows) { return 4; }

EXPERTMESH_INLINE F32x16 Broadcast(float x) { return {_mm512_set1_ps(x)}; }
EXPERTMESH_INLINE F32x16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
EXPERTMESH_INLINE void Store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }

EXPERTMESH_INLINE F32x16 Load(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
EXPERTMESH_INLINE void Store(uint16_t* p, F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))),
      16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i result =
      _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(result));
}

EXPERTMESH_INLINE F32x16 Load(const int8_t* p) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
}

EXPERTMESH_INLINE F32x16 Add(F32x16 a, F32x16 b) {
  return {_mm512_add_ps(a.v, b.v)};
}
EXPERTMESH_INLINE F32x16 Sub(F32x16 a, F32x16 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
EXPERTMESH_INLINE F32x16 Mul(F32x16 a, F32x16 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
EXPERTMESH_INLINE F32x16 Div(F32x16 a, F32x16 b) {
  return {_mm512_div_ps(a.v, b.v)};
}
EXPERTMESH_INLINE F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
EXPERTMESH_INLINE F32x16 Max(F32x16 a, F32x16 b) {
  return {_mm512_max_ps(a.v, b.v)};
}
EXPERTMESH_INLINE F32x16 Min(F32x16 a, F32x16 b) {
  return {_mm512_min_ps(a.v, b.v)};
}

EXPERTMESH_INLINE F32x16 ZeroUnlessAbove(F32x16 a, F32x16 x, F32x16 limit) {
  const __mmask16 above = _mm512_cmp_ps_mask(x.v, limit.v, _CMP_NLE_UQ);
  return {_mm512_maskz_mov_ps(above, a.v)};
}

EXPERTMESH_INLINE __m256 UpperHalf(F32x16 a) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
}
EXPERTMESH_INLINE float SumLanes(F32x16 a) {
  return SumEightLanes(
      _mm256_add_ps(_mm512_castps512_ps256(a.v), UpperHalf(a)));
}
EXPERTMESH_INLINE float MaxLanes(F32x16 a) {
  return MaxEightLanes(
      _mm256_max_ps(_mm512_castps512_ps256(a.v), UpperHalf(a)));
}

// In two steps, so that n may leave the range of one exponent.
EXPERTMESH_INLINE F32x16 ScaleByLowBits(F32x16 x, F32x16 shifted) {
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted.v),
                                     _mm512_set1_epi32(0x4b400000));
  const __m512i half = _mm512_srai_epi32(n, 1);
  const __m512i bias = _mm512_set1_epi32(127);
  const __m512i first = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
  const __m512i second =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias), 23);
  return {_mm512_mul_ps(_mm512_mul_ps(x.v, _mm512_castsi512_ps(first)),
                        _mm512_castsi512_ps(second))};
}

EXPERTMESH_INLINE F32x16 Difference(const int32_t* a, const int32_t* b) {
  return {_mm512_cvtepi32_ps(
      _mm512_sub_epi32(_mm512_loadu_si512(a), _mm512_loadu_si512(b)))};
}
EXPERTMESH_INLINE F32x16 Magnitude(F32x16 a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v),
                                               _mm512_set1_epi32(0x7fffffff)))};
}
EXPERTMESH_INLINE F32x16 MaxAsInts(F32x16 a, F32x16 b) {
  return {_mm512_castsi512_ps(
      _mm512_max_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
EXPERTMESH_INLINE void StoreCodes(uint8_t* p, F32x16 a) {
  const __m512i codes =
      _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(128));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm512_cvtusepi32_epi8(codes));
}

EXPERTMESH_INLINE void StoreBytes4(uint8_t* p, F32x16 b0, F32x16 b1, F32x16 b2,
                                   F32x16 b3) {
  const __m512i mask = _mm512_set1_epi32(0xff);
  const auto byte = [&](F32x16 b) {
    return _mm512_and_si512(_mm512_cvtps_epi32(b.v), mask);
  };
  const __m512i low = _mm512_or_si512(byte(b0), _mm512_slli_epi32(byte(b1), 8));
  const __m512i high =
      _mm512_or_si512(byte(b2), _mm512_slli_epi32(byte(b3), 8));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
EXPERTMESH_INLINE F32x16 SelectLess(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
  return {
      _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}

template <int kHalf>
EXPERTMESH_INLINE F32x16 WidenBF16Half(__m512i pairs) {
  const __m512i bits =
      kHalf == 0 ? _mm512_slli_epi32(pairs, 16)
                 : _mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000));
  return {_mm512_castsi512_ps(bits)};
}
template <int kHalf>
EXPERTMESH_INLINE F32x16 LoadBF16Half(const uint16_t* p) {
  return WidenBF16Half<kHalf>(_mm512_loadu_si512(p));
}
template <int kHalf>
EXPERTMESH_INLINE F32x16 LoadF16Half(const uint16_t* p) {
  const __m512i pairs = _mm512_loadu_si512(p);
  return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(
      kHalf == 0 ? pairs : _mm512_srli_epi32(pairs, 16)))};
}
template <int kHalf>
EXPERTMESH_INLINE F32x16 BroadcastBF16Half(const uint16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, 4);
  return WidenBF16Half<kHalf>(_mm512_set1_epi32(pair));
}

}  // namespace
}  // namespace expertmesh
