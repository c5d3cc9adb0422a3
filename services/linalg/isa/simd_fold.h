#pragma once

// Folds of eight AVX2 lanes to one, the upper half onto the lower three times.
// For simd_avx2.h and simd_avx512.h, which include <immintrin.h>.

namespace expertmesh {
namespace {

EXPERTMESH_INLINE float SumEightLanes(__m256 v) {
  __m128 half =
      _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
EXPERTMESH_INLINE float MaxEightLanes(__m256 v) {
  __m128 half =
      _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

}  // namespace
}  // namespace expertmesh
