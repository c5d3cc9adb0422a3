#pragma once

// Sixteen f32 lanes in two AVX2 registers. See simd_avx512.h for the meaning of
// each function.

#include <immintrin.h>

#include <cstdint>

#define EXPERTMESH_INLINE inline __attribute__((always_inline))

#include "services/linalg/isa/simd_fold.h"

namespace expertmesh {
namespace {

struct F32x16 {
  __m256 lo, hi;
};

// 6 x 1 x 2 accumulators of 16 registers; few rows take more columns, which
// keeps the weights one sequential stream.
constexpr int kTileRows = 6;
constexpr int TileCols(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

EXPERTMESH_INLINE F32x16 Broadcast(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
EXPERTMESH_INLINE F32x16 Load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
EXPERTMESH_INLINE void Store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}

EXPERTMESH_INLINE __m256 WidenBF16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
EXPERTMESH_INLINE F32x16 Load(const uint16_t* p) {
  return {WidenBF16(p), WidenBF16(p + 8)};
}

// Eight dwords below 2^16 to eight words.
EXPERTMESH_INLINE __m128i NarrowWords(__m256i v) {
  return _mm_packus_epi32(_mm256_castsi256_si128(v),
                          _mm256_extracti128_si256(v, 1));
}
EXPERTMESH_INLINE __m128i RoundToBF16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))),
      16);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return NarrowWords(_mm256_blendv_epi8(rounded, quiet, nan));
}
EXPERTMESH_INLINE void Store(uint16_t* p, F32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), RoundToBF16(a.lo));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), RoundToBF16(a.hi));
}

EXPERTMESH_INLINE __m256 WidenCodes(const int8_t* p) {
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}
EXPERTMESH_INLINE F32x16 Load(const int8_t* p) {
  return {WidenCodes(p), WidenCodes(p + 8)};
}

EXPERTMESH_INLINE F32x16 Add(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
EXPERTMESH_INLINE F32x16 Sub(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
EXPERTMESH_INLINE F32x16 Mul(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
EXPERTMESH_INLINE F32x16 Div(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
EXPERTMESH_INLINE F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
EXPERTMESH_INLINE F32x16 Max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
EXPERTMESH_INLINE F32x16 Min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}

EXPERTMESH_INLINE F32x16 ZeroUnlessAbove(F32x16 a, F32x16 x, F32x16 limit) {
  return {_mm256_and_ps(a.lo, _mm256_cmp_ps(x.lo, limit.lo, _CMP_NLE_UQ)),
          _mm256_and_ps(a.hi, _mm256_cmp_ps(x.hi, limit.hi, _CMP_NLE_UQ))};
}

EXPERTMESH_INLINE float SumLanes(F32x16 a) {
  return SumEightLanes(_mm256_add_ps(a.lo, a.hi));
}
EXPERTMESH_INLINE float MaxLanes(F32x16 a) {
  return MaxEightLanes(_mm256_max_ps(a.lo, a.hi));
}

EXPERTMESH_INLINE __m256 ScaleByLowBits(__m256 x, __m256 shifted) {
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted),
                                     _mm256_set1_epi32(0x4b400000));
  const __m256i half = _mm256_srai_epi32(n, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(first)),
                       _mm256_castsi256_ps(second));
}
EXPERTMESH_INLINE F32x16 ScaleByLowBits(F32x16 x, F32x16 shifted) {
  return {ScaleByLowBits(x.lo, shifted.lo), ScaleByLowBits(x.hi, shifted.hi)};
}

EXPERTMESH_INLINE __m256i LoadInts(const int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
EXPERTMESH_INLINE F32x16 Difference(const int32_t* a, const int32_t* b) {
  return {
      _mm256_cvtepi32_ps(_mm256_sub_epi32(LoadInts(a), LoadInts(b))),
      _mm256_cvtepi32_ps(_mm256_sub_epi32(LoadInts(a + 8), LoadInts(b + 8)))};
}
EXPERTMESH_INLINE F32x16 Magnitude(F32x16 a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
EXPERTMESH_INLINE __m256 MaxAsInts(__m256 a, __m256 b) {
  return _mm256_castsi256_ps(
      _mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
EXPERTMESH_INLINE F32x16 MaxAsInts(F32x16 a, F32x16 b) {
  return {MaxAsInts(a.lo, b.lo), MaxAsInts(a.hi, b.hi)};
}
EXPERTMESH_INLINE __m128i RoundToWords(__m256 a) {
  const __m256i codes =
      _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(128));
  return NarrowWords(codes);
}
EXPERTMESH_INLINE void StoreCodes(uint8_t* p, F32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(RoundToWords(a.lo), RoundToWords(a.hi)));
}

EXPERTMESH_INLINE __m256i Bytes4(__m256 b0, __m256 b1, __m256 b2, __m256 b3) {
  const __m256i mask = _mm256_set1_epi32(0xff);
  const auto byte = [&](__m256 b) {
    return _mm256_and_si256(_mm256_cvtps_epi32(b), mask);
  };
  const __m256i low = _mm256_or_si256(byte(b0), _mm256_slli_epi32(byte(b1), 8));
  const __m256i high =
      _mm256_or_si256(byte(b2), _mm256_slli_epi32(byte(b3), 8));
  return _mm256_or_si256(low, _mm256_slli_epi32(high, 16));
}
EXPERTMESH_INLINE void StoreBytes4(uint8_t* p, F32x16 b0, F32x16 b1, F32x16 b2,
                                   F32x16 b3) {
  auto* out = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(out, Bytes4(b0.lo, b1.lo, b2.lo, b3.lo));
  _mm256_storeu_si256(out + 1, Bytes4(b0.hi, b1.hi, b2.hi, b3.hi));
}
EXPERTMESH_INLINE __m256 SelectLess(__m256 a, __m256 b, __m256 x, __m256 y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
EXPERTMESH_INLINE F32x16 SelectLess(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
  return {SelectLess(a.lo, b.lo, x.lo, y.lo),
          SelectLess(a.hi, b.hi, x.hi, y.hi)};
}

EXPERTMESH_INLINE __m256i LoadPairs(const uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
template <int kHalf>
EXPERTMESH_INLINE __m256 WidenBF16Half(__m256i pairs) {
  return _mm256_castsi256_ps(
      kHalf == 0 ? _mm256_slli_epi32(pairs, 16)
                 : _mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000)));
}
template <int kHalf>
EXPERTMESH_INLINE F32x16 LoadBF16Half(const uint16_t* p) {
  return {WidenBF16Half<kHalf>(LoadPairs(p)),
          WidenBF16Half<kHalf>(LoadPairs(p + 16))};
}

template <int kHalf>
EXPERTMESH_INLINE __m256 WidenF16Half(__m256i pairs) {
  return _mm256_cvtph_ps(NarrowWords(
      kHalf == 0 ? _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff))
                 : _mm256_srli_epi32(pairs, 16)));
}
template <int kHalf>
EXPERTMESH_INLINE F32x16 LoadF16Half(const uint16_t* p) {
  return {WidenF16Half<kHalf>(LoadPairs(p)),
          WidenF16Half<kHalf>(LoadPairs(p + 16))};
}

template <int kHalf>
EXPERTMESH_INLINE F32x16 BroadcastBF16Half(const uint16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, 4);
  const __m256 v = WidenBF16Half<kHalf>(_mm256_set1_epi32(pair));
  return {v, v};
}

}  // namespace
}  // namespace expertmesh
