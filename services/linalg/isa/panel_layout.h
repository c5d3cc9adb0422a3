#pragma once

// Where things lie in a panel of 64 outputs. Shared by those who pack panels
// and the kernels, so plain constants and arithmetic only.
//
//   f32         [k][64]
//   bf16, f16   [k / 2][64][2], k padded to a multiple of 32
//   int8        QuantizedPanelHeader, then codes [k / 4][64][4]
//   int4        QuantizedPanelHeader, then a block for each 64 of k:
//                 steps [2][64], of k 0 to 31 and of 32 to 63: a multiplier in
//                 the low half, 16 where the zero is 7 instead of 8
//                 codes [8][64][4]: of each 8 of k, the low halves hold the
//                 first 4 and the high halves the other 4
//               k padded to a multiple of 64, as for int8
//
// A quantized weight is code · scale (int8, code −127 to 127) or
// (code − zero) · multiplier · scale (int4, code 0 to 15, multiplier 0 to 15):
// of an output, all weights are whole multiples of one scale, at most 120 in
// number. With the other zero the codes reach 8 upwards instead of downwards.
// So both formats are products of bytes, summed in integers: exact, in any
// order, on every instruction set.

#include <cstdint>

namespace expertmesh {

// Of the bytes of packed matrices, which are kept on disk: raise it with every
// change of what is said above, of the codes that are chosen, and of which
// tensors a file of services/pack_cache holds in which order.
inline constexpr uint64_t kPanelLayoutVersion = 1;

// Outputs per panel. A panel is the unit of work splitting.
inline constexpr int64_t kPanelWidth = 64;

// Of the multiplier of an int4 weight, along k.
inline constexpr int64_t kInt4Group = 32;
inline constexpr int kInt4Zero = 8;  // or 7
inline constexpr int kMaxInt4Multiplier = 15;

// Quantized activations are bytes with this added to them.
inline constexpr int kActivationZero = 128;

// Sums stay below 2^31: 255 · 127 · k.
inline constexpr int64_t kMaxQuantizedK = 65536;

struct QuantizedPanelHeader {
  float scales[kPanelWidth];
  // kActivationZero times the sum of an output's weights, in scales: what the
  // sum of products has too much.
  int32_t offsets[kPanelWidth];
};

// Static, as everything that files of other compiler flags share: the linker
// must not choose among their copies.
static constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

static constexpr int64_t PaddedHalfK(int64_t k) { return RoundUp(k, 32); }
static constexpr int64_t PaddedQuantizedK(int64_t k) { return RoundUp(k, 64); }

inline constexpr int64_t kInt4StepBytes = 2 * kPanelWidth;  // of a block
inline constexpr int64_t kInt4BlockBytes = kInt4StepBytes + 32 * kPanelWidth;

static constexpr int64_t Int8PanelBytes(int64_t k) {
  return static_cast<int64_t>(sizeof(QuantizedPanelHeader)) +
         PaddedQuantizedK(k) * kPanelWidth;
}
static constexpr int64_t Int4PanelBytes(int64_t k) {
  return static_cast<int64_t>(sizeof(QuantizedPanelHeader)) +
         PaddedQuantizedK(k) / 64 * kInt4BlockBytes;
}

}  // namespace expertmesh
