#pragma once

// Tiles of weights (fragment_layout.h) from memory to operands of mma.

#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "expert_service/kernels/cuda/fragment_layout.h"
#include "expert_service/kernels/cuda/intrinsics.cuh"

namespace expertmesh::expert {

// A strip of a matrix as one lane reads it.
struct StripReader {
  const char* tiles;  // the lane's 16 bytes of the first tile
  uint32_t steps;     // int4: from there to its 4 bytes of multipliers
};

template <WeightFormat kFormat>
__device__ __forceinline__ StripReader StripOf(const CudaMatrix& matrix,
                                               int strip, int num_tiles,
                                               int lane) {
  const int64_t first_tile = static_cast<int64_t>(strip) * num_tiles;
  const char* const tiles = static_cast<const char*>(matrix.fragments) +
                            first_tile * TileBytes(kFormat) + lane * 16;
  if constexpr (kFormat != WeightFormat::kInt4) return {tiles, 0};
  const char* const steps = static_cast<const char*>(matrix.steps) +
                            first_tile * kStepBytes + lane / 4 * 4;
  return {tiles, static_cast<uint32_t>(steps - tiles)};
}

// Two codes in the low bytes of 16 bits each to two bf16. The low seven bits
// are put behind 128, and the sign decides whether 128 or 256 is taken off.
__device__ __forceinline__ uint32_t CodesToBf16x2(uint32_t codes) {
  constexpr uint32_t kOne = 0x3f803f80u;
  const uint32_t above = (codes & 0x007f007fu) | 0x43004300u;
  const uint32_t off = (codes & 0x00800080u) | 0xc300c300u;
  return FmaBf16x2(above, kOne, off);
}

// One lane's part of a tile, as loaded.
template <WeightFormat kFormat>
struct WeightTile {
  // So many of a tile's mma need one load more.
  static constexpr int kLoads = TileBytes(kFormat) / 512;

  uint4 loads[kLoads];
  uint32_t steps;  // int4

  __device__ __forceinline__ void Load(const StripReader& strip, int tile) {
    LoadFor(strip, tile, 0, kMmaPerTile);
  }

  // What mma [begin, end) need: all four, or a half of them.
  __device__ __forceinline__ void LoadFor(const StripReader& strip, int tile,
                                          int begin, int end) {
    const char* const from = strip.tiles + tile * TileBytes(kFormat);
#pragma unroll
    for (int mma = begin; mma < end; ++mma) {
      if (mma * kLoads % kMmaPerTile != 0) continue;
      const int i = mma * kLoads / kMmaPerTile;
      loads[i] = Load16Once(from + i * 512);
    }
    if constexpr (kFormat == WeightFormat::kInt4) {
      if (begin > 0) return;
      steps = Load4(strip.tiles + strip.steps + tile * kStepBytes);
    }
  }

  // A of one of the tile's mma.
  __device__ __forceinline__ void Operand(int mma, uint32_t (&a)[4]) const {
    if constexpr (kFormat == WeightFormat::kBF16) {
      const uint4& load = loads[mma];
      a[0] = load.x;
      a[1] = load.y;
      a[2] = load.z;
      a[3] = load.w;
    } else if constexpr (kFormat == WeightFormat::kInt8) {
      const uint4& load = loads[mma / 2];
      const uint32_t low = mma % 2 == 0 ? load.x : load.z;
      const uint32_t high = mma % 2 == 0 ? load.y : load.w;
      a[0] = CodesToBf16x2(low);
      a[1] = CodesToBf16x2(low >> 8);
      a[2] = CodesToBf16x2(high);
      a[3] = CodesToBf16x2(high >> 8);
    } else {
      OperandOfInt4(mma, a);
    }
  }

  // (128 + code) m - 136 m in one rounding, which has nothing to round; so has
  // 136 m, 17 m eight times.
  __device__ __forceinline__ void OperandOfInt4(int mma,
                                                uint32_t (&a)[4]) const {
    constexpr uint32_t kMinus136 = 0xc308c308u;
    constexpr uint32_t kMinusZero = 0x80008000u;
    const uint4& load = loads[0];
    const uint32_t codes = mma == 0   ? load.x
                           : mma == 1 ? load.y
                           : mma == 2 ? load.z
                                      : load.w;
#pragma unroll
    for (int part = 0; part < 2; ++part) {  // outputs g, then g + 8
      const uint32_t byte = mma / 2 * 2 + part;
      const uint32_t m =
          CodesToBf16x2(BytePermute(steps, 0, 0x4040u | byte | byte << 8));
      const uint32_t off = FmaBf16x2(m, kMinus136, kMinusZero);
#pragma unroll
      for (int i = part; i < 4; i += 2) {
        a[i] =
            FmaBf16x2((codes >> (4 * i) & 0x000f000fu) | 0x43004300u, m, off);
      }
    }
  }
};

}  // namespace expertmesh::expert
