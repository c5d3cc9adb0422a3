#pragma once

// Host code for what expert_service/kernels/cuda/intrinsics.cuh says in PTX;
// contracts are there.

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "services/core/dtype.h"
#include "tests/support/cuda_emulation/cuda_runtime.h"

namespace expertmesh::cuda_emulation {

inline uint32_t BitsOf(float x) { return std::bit_cast<uint32_t>(x); }
inline float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float F16BitsToF32(uint16_t bits) { return F16ToF32(bits); }
inline float LowBf16(uint32_t pair) { return FloatOf(pair << 16); }
inline float HighBf16(uint32_t pair) { return FloatOf(pair & 0xffff0000u); }

inline uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t from = selector >> (4 * i) & 7;
    result |= static_cast<uint32_t>(bytes >> (8 * from) & 0xff) << (8 * i);
  }
  return result;
}

// Products of bf16 are exact in double, and their sums where they matter here.
inline uint32_t FmaBf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto fma = [](double x, double y, double z) {
    return static_cast<uint32_t>(ToBF16(static_cast<float>(x * y + z)).bits);
  };
  return fma(LowBf16(a), LowBf16(b), LowBf16(c)) |
         fma(HighBf16(a), HighBf16(b), HighBf16(c)) << 16;
}

// All of a warp's at once. Each sum is rounded once; devices may round it
// otherwise.
void MmaOfWarp(void* const* lanes);

struct MmaOperands {
  const uint32_t* a;
  uint32_t b[2];
  float* c;
};

inline void Mma(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                float (&c)[4]) {
  MmaOperands operands = {a, {b0, b1}, c};
  MeetWarp(&MmaOfWarp, &operands);
}

// Devices want accesses aligned to their size.
template <typename T>
T LoadAligned(const void* from) {
  CheckAligned(from, sizeof(T));
  T x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
inline uint32_t Load4(const void* from) { return LoadAligned<uint32_t>(from); }
inline uint4 Load16(const void* from) { return LoadAligned<uint4>(from); }
inline uint4 Load16Once(const void* from) { return LoadAligned<uint4>(from); }

// Nothing arrives before it is waited for.
void CopyAsync16(void* shared, const void* global);
void CommitCopies();
void WaitForGroups(int groups_left);
template <int kGroups>
void WaitForCopies() {
  WaitForGroups(kGroups);
}

}  // namespace expertmesh::cuda_emulation
