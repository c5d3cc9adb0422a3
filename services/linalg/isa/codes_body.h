#pragma once

// The weights of sixteen outputs to codes and scales, an output in each lane:
// what is added up for an output is added in one order on every instruction
// set, and codes go to the panel as they lie there (isa/panel_layout.h).
//
// Operations are rounded one by one. Codes, multipliers and their sums are
// whole numbers below 2^24, which f32 holds exactly.

#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22: beside 1.5 * 2^23 there
// is no room for a fraction.
EXPERTMESH_INLINE F32x16 Round(F32x16 x) {
  const F32x16 magic = Broadcast(12582912.0f);
  return Sub(Add(x, magic), magic);
}

// An output's largest weight, and whether it is too small to divide by: then
// all of them are as good as zero.
struct OutputRange {
  explicit OutputRange(F32x16 max_abs)
      : max(SelectLess(max_abs, Broadcast(1e-30f), Broadcast(1.0f), max_abs)),
        alive(SelectLess(max_abs, Broadcast(1e-30f), Broadcast(0.0f),
                         Broadcast(1.0f))) {}

  F32x16 max;    // 1 where there is nothing to divide
  F32x16 alive;  // 1 or 0
};

// The largest magnitudes; false where a weight is not finite.
EXPERTMESH_INLINE bool FindMaxAbs(const float* weights, int64_t k,
                                  F32x16* max_abs) {
  F32x16 max = Broadcast(0.0f);
  for (int64_t i = 0; i < k; ++i) {
    max = MaxAsInts(max, Magnitude(Load(weights + i * 16)));
  }
  *max_abs = max;
  float lanes[16];
  Store(lanes, max);
  bool is_finite = true;
  for (const float lane : lanes) is_finite &= lane <= 3.4028235e38f;
  return is_finite;
}

// `sums` of an output's weights, in scales.
EXPERTMESH_INLINE void WriteHeader(const QuantizeColumnsArgs& args,
                                   F32x16 scales, F32x16 sums) {
  auto& header = *static_cast<QuantizedPanelHeader*>(args.panel);
  Store(header.scales + args.column, scales);
  float lanes[16];
  Store(lanes, sums);
  for (int lane = 0; lane < 16; ++lane) {
    header.offsets[args.column + lane] =
        kActivationZero * static_cast<int32_t>(lanes[lane]);
  }
}

EXPERTMESH_INLINE uint8_t* CodesOf(const QuantizeColumnsArgs& args) {
  return static_cast<uint8_t*>(args.panel) + sizeof(QuantizedPanelHeader);
}

// See kernels.h.
bool QuantizeColumnsInt8(const QuantizeColumnsArgs& args) {
  F32x16 max_abs;
  if (!FindMaxAbs(args.weights, args.k, &max_abs)) return false;
  const OutputRange range(max_abs);
  const F32x16 inverse = Mul(Div(Broadcast(127.0f), range.max), range.alive);
  F32x16 sums = Broadcast(0.0f);
  for (int64_t i = 0; i < args.k; i += 4) {
    F32x16 codes[4];
    for (int j = 0; j < 4; ++j) {
      codes[j] = Round(Mul(Load(args.weights + (i + j) * 16), inverse));
      sums = Add(sums, codes[j]);
    }
    StoreBytes4(CodesOf(args) + (i * kPanelWidth + args.column * 4), codes[0],
                codes[1], codes[2], codes[3]);
  }
  WriteHeader(args, Mul(Div(range.max, Broadcast(127.0f)), range.alive), sums);
  return true;
}

// An int4 group of each output, over the output's largest weight.
struct Int4Groups {
  explicit Int4Groups(const float* group_values) : values(group_values) {
    F32x16 largest = Broadcast(0.0f);
    for (int i = 0; i < kInt4Group; ++i) {
      const F32x16 value = Load(values + i * 16);
      largest =
          SelectLess(Magnitude(largest), Magnitude(value), value, largest);
    }
    max = Magnitude(largest);
    // The codes reach 8 on the side of the largest weight, 7 on the other.
    zero = SelectLess(Broadcast(0.0f), largest, Broadcast(kInt4Zero - 1),
                      Broadcast(kInt4Zero));
    least = Sub(Broadcast(0.0f), zero);
    most = Sub(Broadcast(15.0f), zero);
  }

  F32x16 Code(int i, F32x16 inverse_step) const {
    const F32x16 nearest = Round(Mul(Load(values + i * 16), inverse_step));
    return Min(Max(nearest, least), most);
  }

  const float* values;  // [kInt4Group][16]
  F32x16 max, zero, least, most;
};

// Adds term(0) to term(15) in the tree of SumLanes (simd_*.h).
template <int kFirst, int kStride, typename Term>
EXPERTMESH_INLINE F32x16 SumTree(const Term& term) {
  if constexpr (kStride == 16) {
    return term(kFirst);
  } else {
    return Add(SumTree<kFirst, 2 * kStride>(term),
               SumTree<kFirst + kStride, 2 * kStride>(term));
  }
}

EXPERTMESH_INLINE F32x16 SquaredError(const Int4Groups& group, F32x16 step) {
  const F32x16 inverse = Div(Broadcast(1.0f), step);
  const auto square = [&](int i) {
    const F32x16 value = Load(group.values + i * 16);
    const F32x16 off = Sub(value, Mul(group.Code(i, inverse), step));
    return Mul(off, off);
  };
  return SumTree<0, 1>([&](int i) { return Add(square(i), square(i + 16)); });
}

struct Int4Choice {
  F32x16 multiplier;
  F32x16 error;  // squared, summed
};

// The multiplier whose steps meet the group best: the one that takes its
// largest weight to a code of 8, or the next smaller, which cuts that one off.
EXPERTMESH_INLINE Int4Choice BestMultiplier(const Int4Groups& group,
                                            F32x16 scale) {
  const auto clamped = [](F32x16 multiplier) {
    return Min(Max(multiplier, Broadcast(1.0f)),
               Broadcast(static_cast<float>(kMaxInt4Multiplier)));
  };
  const F32x16 reaches = Round(Div(group.max, Mul(Broadcast(8.0f), scale)));
  const F32x16 low = clamped(Sub(reaches, Broadcast(1.0f)));
  const F32x16 high = clamped(reaches);
  const F32x16 low_error = SquaredError(group, Mul(low, scale));
  const F32x16 high_error = SquaredError(group, Mul(high, scale));
  return {SelectLess(high_error, low_error, high, low),
          SelectLess(high_error, low_error, high_error, low_error)};
}

// The best of a few scales for an output: the one that just reaches its largest
// weight, which is 1, and less, which cuts that one off.
EXPERTMESH_INLINE F32x16 BestInt4Scale(const float* values, int64_t k) {
  constexpr int kNumScales = 3;
  constexpr float kReach = 8.0f * kMaxInt4Multiplier;
  constexpr float kScales[kNumScales] = {1.0f / kReach, 0.94f / kReach,
                                         0.88f / kReach};
  F32x16 errors[kNumScales] = {Broadcast(0.0f), Broadcast(0.0f),
                               Broadcast(0.0f)};
  for (int64_t i = 0; i < k; i += kInt4Group) {
    const Int4Groups group(values + i * 16);
    for (int s = 0; s < kNumScales; ++s) {
      errors[s] =
          Add(errors[s], BestMultiplier(group, Broadcast(kScales[s])).error);
    }
  }
  F32x16 best = Broadcast(kScales[0]);
  F32x16 best_error = errors[0];
  for (int s = 1; s < kNumScales; ++s) {
    best = SelectLess(errors[s], best_error, Broadcast(kScales[s]), best);
    best_error = SelectLess(errors[s], best_error, errors[s], best_error);
  }
  return best;
}

// Codes of a group with its best steps; returns their sums, in scales.
//   steps  [16], codes  [4][64][4], of the block
EXPERTMESH_INLINE F32x16 WriteInt4Group(const Int4Groups& group, F32x16 scale,
                                        F32x16 alive, uint8_t* steps,
                                        uint8_t* codes) {
  const F32x16 multiplier = BestMultiplier(group, scale).multiplier;
  const F32x16 flag = SelectLess(group.zero, Broadcast(kInt4Zero),
                                 Broadcast(16.0f), Broadcast(0.0f));
  // StoreCodes adds 128.
  StoreCodes(steps, Sub(Mul(Add(multiplier, flag), alive), Broadcast(128.0f)));
  const F32x16 inverse = Div(Broadcast(1.0f), Mul(multiplier, scale));
  F32x16 sum = Broadcast(0.0f);
  for (int eight = 0; eight < 4; ++eight) {
    F32x16 bytes[4];
    for (int j = 0; j < 4; ++j) {
      const F32x16 low = group.Code(eight * 8 + j, inverse);
      const F32x16 high = group.Code(eight * 8 + 4 + j, inverse);
      sum = Add(sum, Add(low, high));
      bytes[j] = Mul(Add(Add(low, group.zero),
                         Mul(Add(high, group.zero), Broadcast(16.0f))),
                     alive);
    }
    StoreBytes4(codes + eight * kPanelWidth * 4, bytes[0], bytes[1], bytes[2],
                bytes[3]);
  }
  return Mul(sum, multiplier);
}

// See kernels.h.
bool QuantizeColumnsInt4(const QuantizeColumnsArgs& args) {
  F32x16 max_abs;
  if (!FindMaxAbs(args.weights, args.k, &max_abs)) return false;
  const OutputRange range(max_abs);
  for (int64_t i = 0; i < args.k; ++i) {
    float* at = args.weights + i * 16;
    Store(at, Div(Load(at), range.max));
  }
  const F32x16 scale = BestInt4Scale(args.weights, args.k);
  F32x16 sums = Broadcast(0.0f);
  for (int64_t i = 0; i < args.k; i += kInt4Group) {
    uint8_t* block = CodesOf(args) + i / (2 * kInt4Group) * kInt4BlockBytes;
    const int64_t half = i / kInt4Group % 2;
    const F32x16 sum = WriteInt4Group(
        Int4Groups(args.weights + i * 16), scale, range.alive,
        block + half * kPanelWidth + args.column,
        block + kInt4StepBytes + half * 4 * kPanelWidth * 4 + args.column * 4);
    sums = Add(sums, sum);
  }
  WriteHeader(args, Mul(Mul(scale, range.max), range.alive), sums);
  return true;
}

}  // namespace
}  // namespace expertmesh
