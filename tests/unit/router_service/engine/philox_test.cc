#include "router_service/engine/philox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "router_service/engine/sampler.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;

// Known answers: file kat_vectors of Random123, the authors' own library.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                         {0xffffffff, 0xffffffff}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                         {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(CounterUniformTest, TakesTheUpper24Bits) {
  EXPECT_EQ(CounterUniform(0, 0), static_cast<float>(0x6627e8) * 0x1p-24f);
}

TEST(CounterUniformTest, UsesAllOfSeedAndCounter) {
  const std::set<float> distinct = {
      CounterUniform(1, 0),          CounterUniform(0, 1),
      CounterUniform(1ull << 32, 0), CounterUniform(0, 1ull << 32),
      CounterUniform(~0ull, 0),      CounterUniform(0, ~0ull)};
  EXPECT_EQ(distinct.size(), 6u);
  EXPECT_EQ(CounterUniform(42, 7), CounterUniform(42, 7));
}

// Chi-square over 16 bins, 15 degrees of freedom: 37.7 is passed by chance
// once in a thousand; the draws are fixed, so this never flickers.
TEST(CounterUniformTest, IsUniformOverCountersAndOverSeeds) {
  constexpr int kBins = 16;
  constexpr int kDraws = 64000;
  for (const bool by_seed : {false, true}) {
    std::array<int, kBins> bins = {};
    for (int i = 0; i < kDraws; ++i) {
      const float u = by_seed ? CounterUniform(i, 5) : CounterUniform(5, i);
      ASSERT_GE(u, 0.0f);
      ASSERT_LT(u, 1.0f);
      ++bins[static_cast<int>(u * kBins)];
    }
    double chi_square = 0;
    constexpr double kExpected = static_cast<double>(kDraws) / kBins;
    for (const int count : bins) {
      chi_square += (count - kExpected) * (count - kExpected) / kExpected;
    }
    EXPECT_LT(chi_square, 37.7) << (by_seed ? "seeds" : "counters");
  }
}

}  // namespace
}  // namespace expertmesh::router
