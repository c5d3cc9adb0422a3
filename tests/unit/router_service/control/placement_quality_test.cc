#include "router_service/control/placement_quality.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;

TEST(PlacementQualityTest, SumsTheSlowestHostOfEachLayer) {
  // Layer 0: hosts have 30 and 10 rows. Layer 1: 4 and 8.
  PlacementProblem problem = MakeProblem(2, {30, 10, 4, 8});
  problem.hosts = {ManagedHost("a", 2, {{0, 0}, {1, 0}}),
                   ManagedHost("b", 2, {{0, 1}, {1, 1}})};
  const PlacementQuality quality =
      EvaluatePlacement(problem, CurrentContents(problem));
  EXPECT_THAT(quality.host_balancedness,
              ElementsAre(DoubleEq(20.0 / 30), DoubleEq(6.0 / 8)));
  EXPECT_THAT(quality.replica_balancedness,
              ElementsAre(DoubleEq(20.0 / 30), DoubleEq(6.0 / 8)));
  EXPECT_DOUBLE_EQ(quality.slowest_over_mean, (30.0 + 8.0) / (20 + 6));
}

TEST(PlacementQualityTest, SplitsRowsByRate) {
  // The fast host, three times as fast, gets 30 of 40 rows: both are busy for
  // as long, and that is perfect.
  PlacementProblem problem = MakeProblem(1, {40});
  problem.hosts = {ManagedHost("a", 1, {{0, 0}}),
                   ManagedHost("b", 1, {{0, 0}})};
  problem.hosts[1].speed = 3;
  PlacementQuality quality =
      EvaluatePlacement(problem, CurrentContents(problem));
  EXPECT_DOUBLE_EQ(quality.slowest_over_mean, 1);
  EXPECT_DOUBLE_EQ(quality.host_balancedness[0], 1);
  EXPECT_DOUBLE_EQ(quality.replica_balancedness[0], 20.0 / 30);
  // The same by weight.
  problem.hosts[1].speed = 1;
  problem.hosts[1].pool_weight = 3;
  quality = EvaluatePlacement(problem, CurrentContents(problem));
  EXPECT_DOUBLE_EQ(quality.replica_balancedness[0], 20.0 / 30);
  // All on the slow one: 40 rows at half the mean rate, where 20 busy rows each
  // would do.
  problem.hosts[1].hosted = {};
  quality = EvaluatePlacement(problem, CurrentContents(problem));
  EXPECT_DOUBLE_EQ(quality.slowest_over_mean, 4);
}

TEST(PlacementQualityTest, IsOneWithoutDemand) {
  PlacementProblem problem = MakeProblem(1, {0, 0});
  problem.hosts = {ManagedHost("a", 2, {{0, 0}, {0, 1}})};
  const PlacementQuality quality =
      EvaluatePlacement(problem, CurrentContents(problem));
  EXPECT_EQ(quality.slowest_over_mean, 1);
  EXPECT_THAT(quality.host_balancedness, ElementsAre(1));
  EXPECT_THAT(quality.replica_balancedness, ElementsAre(1));
}

}  // namespace
}  // namespace expertmesh::router
