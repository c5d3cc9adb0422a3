#include "router_service/api/stop_strings.h"

#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

TEST(StopStringsTest, PassesTextThroughWithoutStops) {
  StopStrings stops({});
  EXPECT_EQ(stops.Push("abc"), "abc");
  EXPECT_EQ(stops.Flush(), "");
  EXPECT_FALSE(stops.found());
}

TEST(StopStringsTest, CutsBeforeTheStop) {
  StopStrings stops({"END"});
  EXPECT_EQ(stops.Push("one END two"), "one ");
  EXPECT_TRUE(stops.found());
  EXPECT_EQ(stops.Push("more"), "");
  EXPECT_EQ(stops.Flush(), "");
}

TEST(StopStringsTest, HoldsBackWhatMayBeAStop) {
  StopStrings stops({"END"});
  EXPECT_EQ(stops.Push("one E"), "one ");
  EXPECT_EQ(stops.Push("N"), "");
  EXPECT_EQ(stops.Push("d"), "ENd");
  EXPECT_EQ(stops.Push("EN"), "");
  EXPECT_EQ(stops.Push("D"), "");
  EXPECT_TRUE(stops.found());
}

TEST(StopStringsTest, FlushGivesWhatWasHeld) {
  StopStrings stops({"END"});
  EXPECT_EQ(stops.Push("EN"), "");
  EXPECT_EQ(stops.Flush(), "EN");
}

TEST(StopStringsTest, TheEarliestOfSeveralStopsCounts) {
  StopStrings stops({"cd", "b"});
  EXPECT_EQ(stops.Push("abcd"), "a");
}

TEST(StopStringsTest, AStopThatOverlapsItself) {
  StopStrings stops({"aab"});
  EXPECT_EQ(stops.Push("aa"), "");
  EXPECT_EQ(stops.Push("a"), "a");  // "aa" may still begin one
  EXPECT_EQ(stops.Push("b"), "");
  EXPECT_TRUE(stops.found());
}

}  // namespace
}  // namespace expertmesh::router
