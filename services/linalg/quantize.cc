#include "services/linalg/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22: the sum leaves no room
// for a fraction. Unlike the C library's function it is done for several
// values at once on any CPU.
float Round(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

float MaxAbs(const float* weights, int64_t k) {
  float max = 0;
  for (int64_t i = 0; i < k; ++i) max = std::max(max, std::abs(weights[i]));
  return max;
}

float Int4Code(float weight, float inverse_step) {
  const float code = Round(weight * inverse_step);
  const float low = code > -8.0f ? code : -8.0f;
  return low < 7.0f ? low : 7.0f;
}

// One int4 group, zeros behind its last weight.
struct Group {
  Group(const float* weights, int64_t k, int64_t first)
      : count(std::min(kInt4Group, k - first)) {
    std::copy_n(weights + first, count, values);
    for (int64_t i = 0; i < kInt4Group; ++i) {
      max_abs = std::max(max_abs, std::abs(values[i]));
    }
  }

  // In several sums, as vector registers have lanes.
  float SquaredError(float step) const {
    constexpr int kLanes = 8;
    const float inverse = 1.0f / step;
    float errors[kLanes] = {};
    for (int64_t i = 0; i < kInt4Group; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const float off =
            values[i + j] - Int4Code(values[i + j], inverse) * step;
        errors[j] += off * off;
      }
    }
    return std::accumulate(errors, errors + kLanes, 0.0f);
  }

  int64_t count;
  float values[kInt4Group] = {};
  float max_abs = 0;
};

struct Choice {
  int multiplier = 0;
  float error = std::numeric_limits<float>::infinity();
};

// The multiplier whose steps meet the group best: the one that takes its
// largest weight to the end of the codes, or one beside it.
Choice BestMultiplier(const Group& group, float scale) {
  const int middle = static_cast<int>(Round(group.max_abs / (7.5f * scale)));
  Choice best;
  for (int offset = -1; offset <= 1; ++offset) {
    const int multiplier = std::clamp(middle + offset, 1, kMaxInt4Multiplier);
    const float error =
        group.SquaredError(static_cast<float>(multiplier) * scale);
    if (error < best.error) best = {multiplier, error};
  }
  return best;
}

// The best of a few scales for an output: the one that just reaches its largest
// weight, and less, which cuts that one off for the sake of the others.
float Int4Scale(const std::vector<Group>& groups, float max_abs) {
  float best = 0;
  float best_error = std::numeric_limits<float>::infinity();
  for (const float factor : {1.0f, 0.93f, 0.86f}) {
    const float scale = factor * max_abs / (7.5f * kMaxInt4Multiplier);
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
  for (int64_t i = 0; i < k; i += kInt4Group)
    groups.emplace_back(weights, k, i);
  const float scale = Int4Scale(groups, max_abs);

  auto* block =
      reinterpret_cast<uint8_t*>(panel) + sizeof(QuantizedPanelHeader);
  int32_t sum = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    const bool is_second = g % 2 != 0;
    const int multiplier = BestMultiplier(groups[g], scale).multiplier;
    const float inverse = 1.0f / (static_cast<float>(multiplier) * scale);
    block[column] |= static_cast<uint8_t>(multiplier << (is_second ? 4 : 0));
    for (int64_t i = 0; i < kInt4Group; ++i) {
      const int code = static_cast<int>(Int4Code(groups[g].values[i], inverse));
      const int64_t at = i + (is_second ? kInt4Group : 0);
      block[kPanelWidth + at / 8 * kPanelWidth * 4 + column * 4 + at % 4] |=
          static_cast<uint8_t>((code + kInt4Zero) << (at % 8 < 4 ? 0 : 4));
      sum += code * multiplier;
    }
    if (is_second) block += kInt4BlockBytes;
  }
  QuantizedPanelHeader& header = HeaderOf(panel);
  header.scales[column] = scale;
  header.offsets[column] = kActivationZero * sum;
}

}  // namespace expertmesh
