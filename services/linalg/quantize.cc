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

// How an int4 group's codes are meant.
struct GroupStep {
  int multiplier = 0;
  int zero = kInt4Zero;
  float error = std::numeric_limits<float>::infinity();  // squared, summed
};

// One int4 group, zeros behind its last weight.
struct Group {
  Group(const float* weights, int64_t k, int64_t first) {
    std::copy_n(weights + first, std::min(kInt4Group, k - first), values);
    for (const float value : values) {
      max_abs = std::max(max_abs, std::abs(value));
    }
  }

  // Of value i, from -zero to 15 - zero.
  float Code(int64_t i, int zero, float inverse_step) const {
    const auto least = static_cast<float>(-zero);
    const auto most = static_cast<float>(15 - zero);
    const float code = Round(values[i] * inverse_step);
    const float above = code > least ? code : least;
    return above < most ? above : most;
  }

  // In several sums, as vector registers have lanes.
  float SquaredError(int zero, float step) const {
    constexpr int kLanes = 8;
    const float inverse = 1.0f / step;
    float errors[kLanes] = {};
    for (int64_t i = 0; i < kInt4Group; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const float off = values[i + j] - Code(i + j, zero, inverse) * step;
        errors[j] += off * off;
      }
    }
    return std::accumulate(errors, errors + kLanes, 0.0f);
  }

  float values[kInt4Group] = {};
  float max_abs = 0;
};

// The largest weight takes a code of 8.
constexpr float kLargestCode = 8.0f;

// What meets the group best: the multiplier that takes its largest weight to
// the end of the codes, or one near it, and either zero.
GroupStep BestStep(const Group& group, float scale) {
  const int middle =
      static_cast<int>(Round(group.max_abs / (kLargestCode * scale)));
  GroupStep best;
  for (int offset = -2; offset <= 1; ++offset) {
    const int multiplier = std::clamp(middle + offset, 1, kMaxInt4Multiplier);
    for (const int zero : {kInt4Zero, kInt4Zero - 1}) {
      const float error =
          group.SquaredError(zero, static_cast<float>(multiplier) * scale);
      if (error < best.error) best = {multiplier, zero, error};
    }
  }
  return best;
}

// The best of a few scales for an output: the one that just reaches its largest
// weight, and less, which cuts that one off for the sake of the others.
float Int4Scale(const std::vector<Group>& groups, float max_abs) {
  float best = 0;
  float best_error = std::numeric_limits<float>::infinity();
  for (const float factor : {1.0f, 0.95f, 0.9f, 0.85f}) {
    const float scale = factor * max_abs / (kLargestCode * kMaxInt4Multiplier);
    float error = 0;
    for (const Group& group : groups) error += BestStep(group, scale).error;
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
    const GroupStep step = BestStep(groups[g], scale);
    const float inverse = 1.0f / (static_cast<float>(step.multiplier) * scale);
    block[(is_second ? kPanelWidth : 0) + column] = static_cast<uint8_t>(
        step.multiplier + (step.zero == kInt4Zero ? 0 : 16));
    for (int64_t i = 0; i < kInt4Group; ++i) {
      const int code = static_cast<int>(groups[g].Code(i, step.zero, inverse));
      const int64_t at = i + (is_second ? kInt4Group : 0);
      block[kInt4StepBytes + at / 8 * kPanelWidth * 4 + column * 4 + at % 4] |=
          static_cast<uint8_t>((code + step.zero) << (at % 8 < 4 ? 0 : 4));
      sum += code * step.multiplier;
    }
    if (is_second) block += kInt4BlockBytes;
  }
  QuantizedPanelHeader& header = HeaderOf(panel);
  header.scales[column] = scale;
  header.offsets[column] = kActivationZero * sum;
}

}  // namespace expertmesh
