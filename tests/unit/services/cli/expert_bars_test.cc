#include "services/cli/expert_bars.h"

#include <gtest/gtest.h>

namespace expertmesh {
namespace {

TEST(Bars, AreScaledToTheGreatest) {
  EXPECT_EQ(Bars({0, 1, 4, 8}, 16), "·▁▄█");
}

TEST(Bars, FewRowsAreStillSeen) { EXPECT_EQ(Bars({1, 1000}, 16), "▁█"); }

TEST(Bars, NoRowsAreDots) { EXPECT_EQ(Bars({0, 0}, 16), "··"); }

TEST(Bars, ManyValuesFoldIntoRanges) {
  // Ranges of two: 2, 8, and the odd one left, 4.
  EXPECT_EQ(Bars({1, 1, 4, 4, 4}, 3), "▂█▄");
}

TEST(ExpertBars, AddsUpByLayer) {
  ExpertBars bars(4);
  bars.Add(0, 1, 2);
  bars.Add(0, 1, 6);
  bars.Add(0, 3, 4);
  bars.Add(1, 0, 1);
  EXPECT_EQ(bars.Line(80), "experts  0 ·█·▄  1 █···");
}

TEST(ExpertBars, LeavesOutDenseLayersAndThoseWithoutRoom) {
  ExpertBars bars(2);
  for (const uint32_t layer : {1, 2, 3, 4}) bars.Add(layer, 0, 1);
  EXPECT_EQ(bars.Line(37), "experts  1 █·  2 █·  3 █· +1 layers");
}

TEST(ExpertBars, IgnoresNumbersNoModelHas) {
  ExpertBars bars(2);
  bars.Add(4'000'000'000u, 1, 1);
  bars.Add(1, 4'000'000'000u, 1);
  EXPECT_EQ(bars.Line(80), "experts");
}

}  // namespace
}  // namespace expertmesh
