#include "router_service/engine/expert_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;

TEST(ExpertLoadTest, ForgetsWhatLeftTheWindow) {
  ExpertLoad load(1, 3);
  load.Add({1, 2, 3}, absl::Seconds(100));
  load.AddTokens(5, absl::Seconds(100));
  load.Add({10, 0, 0}, absl::Seconds(101));
  EXPECT_THAT(load.Window(absl::Seconds(101)), ElementsAre(11, 2, 3));
  EXPECT_THAT(load.Window(absl::Seconds(129)), ElementsAre(11, 2, 3));
  EXPECT_THAT(load.Window(absl::Seconds(130)), ElementsAre(10, 0, 0));
  EXPECT_EQ(load.WindowTokens(absl::Seconds(129)), 5);
  EXPECT_EQ(load.WindowTokens(absl::Seconds(130)), 0);
  // The bucket of second 100 is used again.
  load.Add({0, 0, 7}, absl::Seconds(130));
  EXPECT_THAT(load.Window(absl::Seconds(130)), ElementsAre(10, 0, 7));
}

TEST(ExpertLoadTest, CoversNoMoreThanHasPassed) {
  ExpertLoad load(1, 1);
  EXPECT_EQ(load.Covered(absl::Seconds(5)), absl::ZeroDuration());
  load.Add({1}, absl::Seconds(5));
  EXPECT_EQ(load.Covered(absl::Seconds(7)), absl::Seconds(3));
  EXPECT_EQ(load.Covered(absl::Seconds(500)),
            absl::Seconds(ExpertLoad::kWindowSeconds));
}

TEST(BalancednessTest, IsMeanOverMaximum) {
  const uint64_t even[] = {4, 4, 4, 4};
  EXPECT_EQ(Balancedness(even, 4), 1.0);
  const uint64_t skewed[] = {8, 0, 0, 0};
  EXPECT_EQ(Balancedness(skewed, 4), 0.25);
  const uint64_t idle[] = {0, 0};
  EXPECT_EQ(Balancedness(idle, 2), 1.0);
}

}  // namespace
}  // namespace expertmesh::router
