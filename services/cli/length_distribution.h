#pragma once

// How many tokens the prompts or outputs of a benchmark have.

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// A number in (0, 1), the same on every machine. (The distributions of the
// standard library may differ between its implementations.)
double UnitNumber(std::mt19937_64& random);

// Lengths from 1 to max(), which every distribution has. Immutable.
class LengthDistribution {
 public:
  // Always one token.
  LengthDistribution() = default;

  // 128                    always so many
  // uniform:64-256         each of these equally often
  // normal:MEAN,STDDEV     at most four deviations from the mean
  // lognormal:MEDIAN,SIGMA at most exp(4 · SIGMA) times the median
  // zipf:EXPONENT,MAX      n with weight n^-EXPONENT, up to MAX
  // Values are rounded, and those outside the limits moved to them. Errors:
  // INVALID_ARGUMENT quoting the text.
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view text);

  uint32_t Sample(std::mt19937_64& random) const;
  uint32_t max() const { return max_; }
  // As it was parsed.
  const std::string& text() const { return text_; }

 private:
  enum class Kind { kUniform, kNormal, kLogNormal, kZipf };

  absl::Status ParseKind(absl::string_view kind, absl::string_view parameters);
  absl::Status ParseUniform(absl::string_view parameters);
  absl::Status ParseZipf(double exponent, double max);

  Kind kind_ = Kind::kUniform;
  double first_ = 0;   // mean, or median
  double second_ = 0;  // deviation, or sigma
  uint32_t min_ = 1;
  uint32_t max_ = 1;
  std::vector<double> cumulative_;  // [max_] of kZipf
  std::string text_ = "1";
};

}  // namespace expertmesh
