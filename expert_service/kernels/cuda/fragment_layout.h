#pragma once

// Where weights and activations lie for the tensor cores, and in which order
// products are summed. Constants and arithmetic only, for hosts and devices.
//
// y = W x is computed by mma.m16n8k16: weights are its A, 16 outputs by 16 of
// k, and activations its B, 16 of k by 8 rows. In a warp, lane 4 g + t holds
//
//   of A   outputs g and g + 8, of B row g: of k what `t` stands for
//   of C   outputs g and g + 8 of rows 2 t and 2 t + 1
//
// A sum does not care which k is which, as long as A and B agree. So of 32 of
// k, two mma, lane t has 8 t to 8 t + 7: of B they are 16 bytes of a row, one
// load. The first mma takes the first four, the second the others.
//
// A matrix [n, k] lies in strips of 16 outputs, a strip in tiles of 64 of k,
// four mma. n and k are padded with zeros to multiples of 64. A tile is
//
//   bf16   [4 mma][32 lanes][4 registers][2]
//   int8   [2 halves of k][32 lanes][2 mma][2][4 codes]: of two registers, the
//          one of output g + 8 in the odd bytes
//   int4   [32 lanes][4 mma][8 codes of 4 bits]: code i + 4 h is half h of
//          register i
//
// so that a load of 16 bytes per lane takes 512 bytes in a row. Behind all
// tiles of int4 come the multipliers, int8_t [strips][tiles][8 g][2 halves of
// k][outputs g, g + 8]; behind those of both quantized formats the scales, f32
// [padded n].
//
// An int4 weight is (code - 8) · multiplier · scale here: where the panels have
// 7 for the zero, both factors have the other sign. |multiplier| <= 15, so the
// product of codes is at most 120, and like the 127 of int8 exact in bf16.
//
// f32 and f16 weights are not for the tensor cores: they lie [n, k], unpadded.
//
// The order of sums: k is cut into ranges of whole tiles, of its length alone.
// A range is summed by a chain of mma, ascending, from zero; then the ranges'
// sums are added, ascending, from zero too, in f32. Every kernel keeps to it,
// so that a row's bits do not depend on which kernel, and with how many other
// rows, it ran.

#include <cstddef>
#include <cstdint>

#include "services/linalg/weight_format.h"

#include "expert_service/kernels/cuda/host_device.h"

namespace expertmesh::expert {

inline constexpr int kStripOutputs = 16;
inline constexpr int kTileK = 64;
inline constexpr int kMmaPerTile = kTileK / 16;
inline constexpr int kStepBytes = 32;  // of a tile of int4: its multipliers

// Sums of k that are added up in the end, fewer where k has fewer tiles.
inline constexpr int kSumRanges = 8;

EXPERTMESH_HOST_DEVICE constexpr bool UsesTensorCores(WeightFormat format) {
  return format != WeightFormat::kF32 && format != WeightFormat::kF16;
}

EXPERTMESH_HOST_DEVICE constexpr bool HasScales(WeightFormat format) {
  return format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
}

// Of n and of k, and of the rows of activations.
EXPERTMESH_HOST_DEVICE constexpr int64_t PaddedExtent(int64_t extent) {
  return (extent + 63) / 64 * 64;
}

// Of a tile without its multipliers.
EXPERTMESH_HOST_DEVICE constexpr int TileBytes(WeightFormat format) {
  if (format == WeightFormat::kInt4) return 512;
  return format == WeightFormat::kInt8 ? 1024 : 2048;
}

// First tile of a range, and the end of the one before. Ranges behind the last
// are empty.
EXPERTMESH_HOST_DEVICE constexpr int RangeBegin(int num_tiles, int range) {
  const int ranges = num_tiles < kSumRanges ? num_tiles : kSumRanges;
  return range < ranges ? num_tiles * range / ranges : num_tiles;
}

// The element of a tile that half `half` of register `reg` of A holds.
struct TileElement {
  int output;  // 0 to 15
  int k;       // 0 to 63
};

EXPERTMESH_HOST_DEVICE constexpr TileElement ElementOf(int mma, int lane,
                                                       int reg, int half) {
  return {.output = lane / 4 + reg % 2 * 8,
          .k = mma / 2 * 32 + lane % 4 * 8 + mma % 2 * 4 + reg / 2 * 2 + half};
}

// The parts of a matrix on the device, in bytes from its start.
struct MatrixParts {
  int64_t steps = 0;
  int64_t scales = 0;
  int64_t size = 0;
};

EXPERTMESH_HOST_DEVICE constexpr MatrixParts PartsOf(int64_t n, int64_t k,
                                                     WeightFormat format) {
  if (!UsesTensorCores(format)) {
    const int64_t size = n * k * (format == WeightFormat::kF32 ? 4 : 2);
    return {.steps = size, .scales = size, .size = size};
  }
  const int64_t tiles =
      PaddedExtent(n) / kStripOutputs * (PaddedExtent(k) / kTileK);
  MatrixParts parts;
  parts.steps = tiles * TileBytes(format);
  parts.scales =
      parts.steps + (format == WeightFormat::kInt4 ? tiles * kStepBytes : 0);
  parts.size = parts.scales + (HasScales(format) ? PaddedExtent(n) * 4 : 0);
  return parts;
}

}  // namespace expertmesh::expert
