#include "router_service/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace expertmesh::router {
namespace {

double MScale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// Dimension at which a frequency turns `rotations` times over the original
// context.
double YarnDimension(const RopeConfig& config, double rotations) {
  return static_cast<double>(config.rotary_dim) *
         std::log(static_cast<double>(config.original_max_position) /
                  (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(config.theta));
}

// Blends scaled and unscaled frequencies by a ramp over the dimension.
// Source: arXiv:2309.00071.
void ScaleYarn(const RopeConfig& config, std::vector<float>* frequencies) {
  double low = YarnDimension(config, config.beta_fast);
  double high = YarnDimension(config, config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.rotary_dim - 1));
  if (low == high) high += 0.001;  // no division by zero
  for (size_t i = 0; i < frequencies->size(); ++i) {
    const double ramp =
        std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double frequency = (*frequencies)[i];
    (*frequencies)[i] = static_cast<float>(frequency * (1.0 - ramp) +
                                           frequency / config.factor * ramp);
  }
}

void ScaleLlama3(const RopeConfig& config, std::vector<float>* frequencies) {
  const double original = static_cast<double>(config.original_max_position);
  const double low_wavelength = original / config.low_freq_factor;
  const double high_wavelength = original / config.high_freq_factor;
  for (float& frequency : *frequencies) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < high_wavelength) continue;
    if (wavelength > low_wavelength) {
      frequency = static_cast<float>(frequency / config.factor);
      continue;
    }
    const double smooth = (original / wavelength - config.low_freq_factor) /
                          (config.high_freq_factor - config.low_freq_factor);
    frequency = static_cast<float>((1.0 - smooth) * frequency / config.factor +
                                   smooth * frequency);
  }
}

}  // namespace

std::vector<float> RopeInverseFrequencies(const RopeConfig& config) {
  std::vector<float> frequencies(config.rotary_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = static_cast<float>(
        1.0 /
        std::pow(config.theta, 2.0 * static_cast<double>(i) /
                                   static_cast<double>(config.rotary_dim)));
  }
  switch (config.type) {
    case RopeType::kDefault:
    case RopeType::kDynamic:  // differs only beyond the context we serve
      break;
    case RopeType::kLinear:
      for (float& frequency : frequencies) {
        frequency = static_cast<float>(frequency / config.factor);
      }
      break;
    case RopeType::kYarn:
      ScaleYarn(config, &frequencies);
      break;
    case RopeType::kLlama3:
      ScaleLlama3(config, &frequencies);
      break;
  }
  return frequencies;
}

float RopeAttentionFactor(const RopeConfig& config) {
  if (config.type != RopeType::kYarn) return 1.0f;
  if (config.attention_factor) {
    return static_cast<float>(*config.attention_factor);
  }
  if (config.mscale.value_or(0) != 0 &&
      config.mscale_all_dim.value_or(0) != 0) {
    return static_cast<float>(MScale(config.factor, *config.mscale) /
                              MScale(config.factor, *config.mscale_all_dim));
  }
  return static_cast<float>(MScale(config.factor, 1.0));
}

RopeTable::RopeTable(const RopeConfig& config, int64_t max_positions)
    : half_(config.rotary_dim / 2),
      cos_(max_positions * half_),
      sin_(max_positions * half_) {
  const std::vector<float> frequencies = RopeInverseFrequencies(config);
  const float factor = RopeAttentionFactor(config);
  for (int64_t position = 0; position < max_positions; ++position) {
    for (int64_t i = 0; i < half_; ++i) {
      // The reference computes the angle in float: so do we, before the cosine.
      const float angle = static_cast<float>(position) * frequencies[i];
      cos_[position * half_ + i] =
          static_cast<float>(std::cos(static_cast<double>(angle))) * factor;
      sin_[position * half_ + i] =
          static_cast<float>(std::sin(static_cast<double>(angle))) * factor;
    }
  }
}

void RopeTable::Rotate(int64_t position, float* head) const {
  const float* cosines = &cos_[position * half_];
  const float* sines = &sin_[position * half_];
  float* first = head;
  float* second = head + half_;
  for (int64_t i = 0; i < half_; ++i) {
    const float a = first[i];
    const float b = second[i];
    first[i] = a * cosines[i] - b * sines[i];
    second[i] = b * cosines[i] + a * sines[i];
  }
}

}  // namespace expertmesh::router
