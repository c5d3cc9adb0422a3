#pragma once

// Sixteen f32 lanes in plain C++. The other simd_*.h give the same functions
// with the same bits; see simd_avx512.h. Everything is in an unnamed namespace
// because each instruction set compiles its own copy.

#include <cstdint>

#define EXPERTMESH_INLINE inline __attribute__((always_inline))

namespace expertmesh {
namespace {

struct F32x16 {
  float v[16];
};

// Register block of a product: rows by columns of 16 outputs.
constexpr int kTileRows = 4;
constexpr int TileCols(int rows) { return 1; }

template <typename Op>
EXPERTMESH_INLINE F32x16 EachLane(Op op) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = op(i);
  return r;
}

EXPERTMESH_INLINE float FloatOfBits(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
EXPERTMESH_INLINE uint32_t BitsOfFloat(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return bits;
}

EXPERTMESH_INLINE F32x16 Broadcast(float x) {
  return EachLane([&](int) { return x; });
}
EXPERTMESH_INLINE F32x16 Load(const float* p) {
  return EachLane([&](int i) { return p[i]; });
}
EXPERTMESH_INLINE void Store(float* p, const F32x16& a) {
  for (int i = 0; i < 16; ++i) p[i] = a.v[i];
}
EXPERTMESH_INLINE F32x16 Load(const uint16_t* p) {
  return EachLane(
      [&](int i) { return FloatOfBits(static_cast<uint32_t>(p[i]) << 16); });
}
EXPERTMESH_INLINE void Store(uint16_t* p, const F32x16& a) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = BitsOfFloat(a.v[i]);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    p[i] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x0040u : rounded);
  }
}

EXPERTMESH_INLINE F32x16 Load(const int8_t* p) {
  return EachLane([&](int i) { return static_cast<float>(p[i]); });
}

EXPERTMESH_INLINE F32x16 Add(const F32x16& a, const F32x16& b) {
  return EachLane([&](int i) { return a.v[i] + b.v[i]; });
}
EXPERTMESH_INLINE F32x16 Sub(const F32x16& a, const F32x16& b) {
  return EachLane([&](int i) { return a.v[i] - b.v[i]; });
}
EXPERTMESH_INLINE F32x16 Mul(const F32x16& a, const F32x16& b) {
  return EachLane([&](int i) { return a.v[i] * b.v[i]; });
}
EXPERTMESH_INLINE F32x16 Div(const F32x16& a, const F32x16& b) {
  return EachLane([&](int i) { return a.v[i] / b.v[i]; });
}
EXPERTMESH_INLINE F32x16 Fma(const F32x16& a, const F32x16& b,
                             const F32x16& c) {
  return EachLane(
      [&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
EXPERTMESH_INLINE F32x16 Max(const F32x16& a, const F32x16& b) {
  return EachLane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
EXPERTMESH_INLINE F32x16 Min(const F32x16& a, const F32x16& b) {
  return EachLane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}

EXPERTMESH_INLINE F32x16 ZeroUnlessAbove(const F32x16& a, const F32x16& x,
                                         const F32x16& limit) {
  return EachLane([&](int i) { return x.v[i] <= limit.v[i] ? 0.0f : a.v[i]; });
}

EXPERTMESH_INLINE float SumLanes(F32x16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}
EXPERTMESH_INLINE float MaxLanes(F32x16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    }
  }
  return a.v[0];
}

EXPERTMESH_INLINE F32x16 ScaleByLowBits(const F32x16& x,
                                        const F32x16& shifted) {
  return EachLane([&](int i) {
    const uint32_t n = BitsOfFloat(shifted.v[i]) - 0x4b400000u;
    const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(n) >> 1);
    const float first = FloatOfBits((half + 127u) << 23);
    const float second = FloatOfBits((n - half + 127u) << 23);
    return x.v[i] * first * second;
  });
}

EXPERTMESH_INLINE F32x16 Difference(const int32_t* a, const int32_t* b) {
  return EachLane([&](int i) { return static_cast<float>(a[i] - b[i]); });
}
EXPERTMESH_INLINE F32x16 Magnitude(const F32x16& a) {
  return EachLane(
      [&](int i) { return FloatOfBits(BitsOfFloat(a.v[i]) & 0x7fffffffu); });
}
EXPERTMESH_INLINE F32x16 MaxAsInts(const F32x16& a, const F32x16& b) {
  return EachLane([&](int i) {
    const auto x = static_cast<int32_t>(BitsOfFloat(a.v[i]));
    const auto y = static_cast<int32_t>(BitsOfFloat(b.v[i]));
    return FloatOfBits(static_cast<uint32_t>(x > y ? x : y));
  });
}
EXPERTMESH_INLINE void StoreCodes(uint8_t* p, const F32x16& a) {
  for (int i = 0; i < 16; ++i) {
    // Beside 1.5 * 2^23 there is no room for a fraction.
    const float rounded = (a.v[i] + 12582912.0f) - 12582912.0f;
    p[i] = static_cast<uint8_t>(static_cast<int>(rounded) + 128);
  }
}

EXPERTMESH_INLINE void StoreBytes4(uint8_t* p, const F32x16& b0,
                                   const F32x16& b1, const F32x16& b2,
                                   const F32x16& b3) {
  for (int i = 0; i < 16; ++i) {
    p[4 * i] = static_cast<uint8_t>(static_cast<int>(b0.v[i]));
    p[4 * i + 1] = static_cast<uint8_t>(static_cast<int>(b1.v[i]));
    p[4 * i + 2] = static_cast<uint8_t>(static_cast<int>(b2.v[i]));
    p[4 * i + 3] = static_cast<uint8_t>(static_cast<int>(b3.v[i]));
  }
}
EXPERTMESH_INLINE F32x16 SelectLess(const F32x16& a, const F32x16& b,
                                    const F32x16& x, const F32x16& y) {
  return EachLane([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
}

template <int kHalf>
EXPERTMESH_INLINE F32x16 LoadBF16Half(const uint16_t* p) {
  return EachLane([&](int i) {
    return FloatOfBits(static_cast<uint32_t>(p[2 * i + kHalf]) << 16);
  });
}

EXPERTMESH_INLINE float WidenF16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, or NaN made quiet as F16C does
    const uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0u;
    return FloatOfBits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | quiet);
  }
  // The bits read as a binary32 are the value times 2^-112, exactly.
  const float scaled = FloatOfBits(magnitude << 13) * 0x1p112f;
  return FloatOfBits(sign | BitsOfFloat(scaled));
}
template <int kHalf>
EXPERTMESH_INLINE F32x16 LoadF16Half(const uint16_t* p) {
  return EachLane([&](int i) { return WidenF16(p[2 * i + kHalf]); });
}

template <int kHalf>
EXPERTMESH_INLINE F32x16 BroadcastBF16Half(const uint16_t* p) {
  return Broadcast(FloatOfBits(static_cast<uint32_t>(p[kHalf]) << 16));
}

}  // namespace
}  // namespace expertmesh
