#include "services/linalg/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "services/linalg/isa/kernels.h"
#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22: the sum leaves no room
// for a fraction. As the kernels round.
float Round(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

float MaxAbs(const float* weights, int64_t k) {
  float max = 0;
  for (int64_t i = 0; i < k; ++i) max = std::max(max, std::abs(weights[i]));
  return max;
}

// One int4 group of weights over their output's largest, zeros behind its last.
struct Group {
  Group(const float* weights, int64_t k, int64_t first, float max_abs) {
    const int64_t count = std::min(kInt4Group, k - first);
    float largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      values[i] = weights[first + i] / max_abs;
      if (std::abs(values[i]) > std::abs(largest)) largest = values[i];
    }
    max = std::abs(largest);
    // The codes reach 8 on the side of the largest weight.
    zero = largest > 0 ? kInt4Zero - 1 : kInt4Zero;
  }

  float least() const { return static_cast<float>(-zero); }
  float most() const { return static_cast<float>(15 - zero); }
  int Code(int64_t i, float step) const {
    return static_cast<int>(
        std::clamp(Round(values[i] * (1.0f / step)), least(), most()));
  }

  float values[kInt4Group] = {};
  float max = 0;
  int zero = kInt4Zero;
};

struct Choice {
  int multiplier = 0;
  float error = std::numeric_limits<float>::infinity();  // squared, summed
};

// The multiplier whose steps meet the group best: the one that takes its
// largest weight to a code of 8, or the next smaller, which cuts that one off.
Choice BestMultiplier(const Group& group, float scale) {
  const int reaches = static_cast<int>(Round(group.max / (8.0f * scale)));
  Choice best;
  for (const int wanted : {reaches - 1, reaches}) {
    const int multiplier = std::clamp(wanted, 1, kMaxInt4Multiplier);
    const float error =
        ActiveKernels().int4_error(group.values, group.least(), group.most(),
                                   static_cast<float>(multiplier) * scale);
    if (error < best.error) best = {multiplier, error};
  }
  return best;
}

// The best of a few scales for an output: the one that just reaches its largest
// weight, which is 1, and less, which cuts that one off.
float Int4Scale(const std::vector<Group>& groups) {
  float best = 0;
  float best_error = std::numeric_limits<float>::infinity();
  for (const float factor : {1.0f, 0.94f, 0.88f}) {
    const float scale = factor / (8.0f * kMaxInt4Multiplier);
    float error = 0;
    for (const Group& group : groups) {
      error += BestMultiplier(group, scale).error;
    }
    if (error < best_error) {
      best_error = error;
      best = scale;
    }
  }
  return best;
}

QuantizedPanelHeader& HeaderOf(std::byte* panel) {
  return *reinterpret_cast<QuantizedPanelHeader*>(panel);
}

// Too small to divide by: as good as zero.
bool IsZero(float max_abs) { return max_abs < 1e-30f; }

}  // namespace

void QuantizeToInt8(const float* weights, int64_t k, int64_t column,
                    std::byte* panel) {
  QuantizedPanelHeader& header = HeaderOf(panel);
  const float max_abs = MaxAbs(weights, k);
  if (IsZero(max_abs)) return;
  const float scale = max_abs / 127.0f;
  const float inverse = 127.0f / max_abs;
  auto* codes = reinterpret_cast<int8_t*>(panel + sizeof(QuantizedPanelHeader));
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    const auto code = static_cast<int8_t>(Round(weights[i] * inverse));
    codes[i / 4 * kPanelWidth * 4 + column * 4 + i % 4] = code;
    sum += code;
  }
  header.scales[column] = scale;
  header.offsets[column] = kActivationZero * sum;
}

void QuantizeToInt4(const float* weights, int64_t k, int64_t column,
                    std::byte* panel) {
  const float max_abs = MaxAbs(weights, k);
  if (IsZero(max_abs)) return;
  std::vector<Group> groups;
  groups.reserve(static_cast<size_t>((k + kInt4Group - 1) / kInt4Group));
  for (int64_t i = 0; i < k; i += kInt4Group) {
    groups.emplace_back(weights, k, i, max_abs);
  }
  const float scale = Int4Scale(groups);

  auto* block =
      reinterpret_cast<uint8_t*>(panel) + sizeof(QuantizedPanelHeader);
  int32_t sum = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    const Group& group = groups[g];
    const int64_t half = static_cast<int64_t>(g % 2);
    const int multiplier = BestMultiplier(group, scale).multiplier;
    const float step = static_cast<float>(multiplier) * scale;
    block[half * kPanelWidth + column] =
        static_cast<uint8_t>(multiplier + (group.zero == kInt4Zero ? 0 : 16));
    for (int64_t i = 0; i < kInt4Group; ++i) {
      const int code = group.Code(i, step);
      const int64_t at = half * kInt4Group + i;
      block[kInt4StepBytes + at / 8 * kPanelWidth * 4 + column * 4 + at % 4] |=
          static_cast<uint8_t>((code + group.zero) << (at % 8 < 4 ? 0 : 4));
      sum += code * multiplier;
    }
    if (half == 1) block += kInt4BlockBytes;
  }
  QuantizedPanelHeader& header = HeaderOf(panel);
  header.scales[column] = scale * max_abs;
  header.offsets[column] = kActivationZero * sum;
}

}  // namespace expertmesh
