#include "services/cli/length_distribution.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace expertmesh {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;

std::vector<uint32_t> Samples(absl::string_view text, size_t count = 20000,
                              uint64_t seed = 1) {
  const auto lengths = LengthDistribution::Parse(text);
  EXPECT_TRUE(lengths.ok()) << lengths.status();
  std::mt19937_64 random(seed);
  std::vector<uint32_t> samples(count);
  for (uint32_t& sample : samples) sample = lengths->Sample(random);
  return samples;
}

double Mean(const std::vector<uint32_t>& samples) {
  double sum = 0;
  for (const uint32_t sample : samples) sum += sample;
  return sum / static_cast<double>(samples.size());
}

uint32_t Median(std::vector<uint32_t> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

TEST(LengthDistribution, ANumberIsAlwaysItself) {
  EXPECT_THAT(Samples("128"), Each(128));
  EXPECT_EQ(LengthDistribution::Parse("128")->max(), 128);
}

TEST(LengthDistribution, UniformGivesBothEndsAndAllBetweenEquallyOften) {
  std::map<uint32_t, int> counts;
  for (const uint32_t sample : Samples("uniform:3-7")) ++counts[sample];
  EXPECT_EQ(counts.size(), 5);
  for (const auto& [length, count] : counts) {
    EXPECT_NEAR(count, 4000, 300) << length;
  }
  EXPECT_EQ(counts.begin()->first, 3);
  EXPECT_EQ(LengthDistribution::Parse("uniform:3-7")->max(), 7);
}

TEST(LengthDistribution, NormalHasItsMeanAndDeviation) {
  const std::vector<uint32_t> samples = Samples("normal:128,32");
  const double mean = Mean(samples);
  double squares = 0;
  for (const uint32_t sample : samples) {
    squares += (sample - mean) * (sample - mean);
  }
  EXPECT_NEAR(mean, 128, 1);
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(samples.size())), 32, 1);
  EXPECT_EQ(LengthDistribution::Parse("normal:128,32")->max(), 256);
}

TEST(LengthDistribution, ValuesOutsideAreMovedToTheLimits) {
  EXPECT_THAT(Samples("normal:2,10"), Each(AllOf(Ge(1), Le(42))));
  EXPECT_THAT(Samples("normal:5,0"), Each(5));
}

TEST(LengthDistribution, LogNormalHasItsMedianAndALongTail) {
  const std::vector<uint32_t> samples = Samples("lognormal:100,0.5");
  EXPECT_NEAR(Median(samples), 100, 3);
  EXPECT_NEAR(Mean(samples), 100 * std::exp(0.125), 3);
  EXPECT_THAT(samples, Each(Le(739)));  // 100 e^2
}

TEST(LengthDistribution, ZipfHalvesTheWeightAtTwice) {
  std::map<uint32_t, int> counts;
  for (const uint32_t sample : Samples("zipf:1,4")) ++counts[sample];
  EXPECT_EQ(counts.size(), 4);
  const double whole = 1 + 1.0 / 2 + 1.0 / 3 + 1.0 / 4;
  for (const auto& [length, count] : counts) {
    EXPECT_NEAR(count, 20000 / whole / length, 300) << length;
  }
}

TEST(LengthDistribution, TheSameSeedGivesTheSameLengths) {
  for (const auto* text : {"uniform:1-1000", "normal:500,100",
                           "lognormal:500,0.5", "zipf:1.1,1000"}) {
    EXPECT_EQ(Samples(text, 50, 7), Samples(text, 50, 7));
    EXPECT_NE(Samples(text, 50, 7), Samples(text, 50, 8));
  }
}

TEST(LengthDistribution, OtherTextIsQuotedWithWhatWouldBeRight) {
  for (const auto* text : {"",
                           "0",
                           "-5",
                           "1.5",
                           "12x",
                           "128:1",
                           "2000000",
                           "uniform",
                           "uniform:5",
                           "uniform:9-5",
                           "uniform:0-5",
                           "uniform:1-2-3",
                           "normal:5",
                           "normal:a,b",
                           "normal:-5,1",
                           "normal:5,-1",
                           "normal:nan,1",
                           "normal:inf,1",
                           "normal:1e6,1e6",
                           "lognormal:100",
                           "lognormal:100,9",
                           "zipf:1",
                           "zipf:1,0",
                           "zipf:1,2.5",
                           "zipf:1,1e9",
                           "zipf:0,5",
                           "gamma:1,2"}) {
    const auto lengths = LengthDistribution::Parse(text);
    EXPECT_EQ(lengths.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
    EXPECT_THAT(std::string(lengths.status().message()),
                HasSubstr(std::string("\"") + text + "\""));
  }
}

}  // namespace
}  // namespace expertmesh
