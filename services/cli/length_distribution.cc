#include "services/cli/length_distribution.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

constexpr uint32_t kMostTokens = 1 << 20;
constexpr double kDeviations = 4;

absl::Status Wrong(absl::string_view why) {
  return absl::InvalidArgumentError(why);
}

absl::StatusOr<uint32_t> ParseLength(absl::string_view text) {
  uint32_t length;
  if (!text.empty() && absl::ascii_isdigit(text.front()) &&
      absl::SimpleAtoi(text, &length) && length >= 1 && length <= kMostTokens) {
    return length;
  }
  return Wrong(absl::StrCat("\"", text, "\" is not a number of tokens from 1 ",
                            "to ", kMostTokens));
}

// "A,B": finite numbers, A above 0 and B at least 0.
std::optional<std::pair<double, double>> ParsePair(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ',');
  double first, second;
  if (parts.size() != 2 || !absl::SimpleAtod(parts[0], &first) ||
      !absl::SimpleAtod(parts[1], &second) || !std::isfinite(first) ||
      !std::isfinite(second) || first <= 0 || second < 0) {
    return std::nullopt;
  }
  return std::pair(first, second);
}

uint32_t Bounded(double value, double most) {
  return static_cast<uint32_t>(std::clamp(std::round(value), 1.0, most));
}

// Box and Muller's method; one of its two numbers is enough.
double StandardNormal(std::mt19937_64& random) {
  const double radius = std::sqrt(-2 * std::log(UnitNumber(random)));
  return radius * std::cos(2 * std::numbers::pi * UnitNumber(random));
}

}  // namespace

double UnitNumber(std::mt19937_64& random) {
  return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
}

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(
    absl::string_view text) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  LengthDistribution lengths;
  lengths.text_ = std::string(text);
  const absl::Status status = lengths.ParseKind(parts.first, parts.second);
  if (status.ok()) return lengths;
  return Wrong(absl::StrCat(
      "\"", text, "\" is no distribution of lengths: ", status.message()));
}

absl::Status LengthDistribution::ParseKind(absl::string_view kind,
                                           absl::string_view parameters) {
  if (kind == "uniform") return ParseUniform(parameters);
  if (!kind.empty() && absl::ascii_isdigit(kind.front())) {
    if (!parameters.empty()) return Wrong("nothing follows a number");
    ASSIGN_OR_RETURN(min_, ParseLength(kind));
    max_ = min_;
    return absl::OkStatus();
  }
  const auto pair = ParsePair(parameters);
  if (kind == "zipf") {
    return pair ? ParseZipf(pair->first, pair->second)
                : Wrong("it is zipf:EXPONENT,MAX, such as zipf:1.2,512");
  }
  if (kind != "normal" && kind != "lognormal") {
    return Wrong(
        "it is 128, uniform:64-256, normal:MEAN,STDDEV, "
        "lognormal:MEDIAN,SIGMA or zipf:EXPONENT,MAX");
  }
  if (!pair) {
    return Wrong(kind == "normal"
                     ? "it is normal:MEAN,STDDEV, such as normal:128,32"
                     : "it is lognormal:MEDIAN,SIGMA, such as "
                       "lognormal:128,0.5");
  }
  std::tie(first_, second_) = *pair;
  kind_ = kind == "normal" ? Kind::kNormal : Kind::kLogNormal;
  const double most = kind == "normal"
                          ? first_ + kDeviations * second_
                          : first_ * std::exp(kDeviations * second_);
  if (most > kMostTokens) {
    return Wrong(absl::StrCat("it goes beyond ", kMostTokens, " tokens"));
  }
  max_ = Bounded(most, kMostTokens);
  return absl::OkStatus();
}

absl::Status LengthDistribution::ParseUniform(absl::string_view parameters) {
  const std::vector<absl::string_view> ends = absl::StrSplit(parameters, '-');
  if (ends.size() != 2) return Wrong("it is uniform:LEAST-MOST");
  ASSIGN_OR_RETURN(min_, ParseLength(ends[0]));
  ASSIGN_OR_RETURN(max_, ParseLength(ends[1]));
  return min_ <= max_ ? absl::OkStatus() : Wrong("the lesser end comes first");
}

absl::Status LengthDistribution::ParseZipf(double exponent, double max) {
  if (max < 1 || max > kMostTokens || max != std::floor(max)) {
    return Wrong(absl::StrCat("MAX is a whole number up to ", kMostTokens));
  }
  kind_ = Kind::kZipf;
  max_ = static_cast<uint32_t>(max);
  cumulative_.reserve(max_);
  double sum = 0;
  for (uint32_t n = 1; n <= max_; ++n) {
    sum += std::pow(n, -exponent);
    cumulative_.push_back(sum);
  }
  return absl::OkStatus();
}

uint32_t LengthDistribution::Sample(std::mt19937_64& random) const {
  switch (kind_) {
    case Kind::kUniform: {
      const double width = static_cast<double>(max_ - min_) + 1;
      return min_ + static_cast<uint32_t>(UnitNumber(random) * width);
    }
    case Kind::kNormal:
      return Bounded(first_ + second_ * StandardNormal(random), max_);
    case Kind::kLogNormal:
      return Bounded(first_ * std::exp(second_ * StandardNormal(random)), max_);
    case Kind::kZipf: {
      const double point = UnitNumber(random) * cumulative_.back();
      const auto at =
          std::lower_bound(cumulative_.begin(), cumulative_.end() - 1, point);
      return 1 + static_cast<uint32_t>(at - cumulative_.begin());
    }
  }
  return max_;
}

}  // namespace expertmesh
