#include "router_service/control/standby.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

PlacementHost Standby(PlacementHost host) {
  host.stands_by = true;
  return host;
}

// Of one layer, hosts in the order of their numbers.
PlacementProblem Problem(std::vector<double> rows,
                         std::vector<PlacementHost> hosts) {
  PlacementProblem problem = MakeProblem(1, std::move(rows));
  problem.hosts = std::move(hosts);
  return problem;
}

TEST(StandbyTest, WithoutAnyItIsThePlan) {
  const PlacementProblem problem =
      Problem({90, 10}, {FixedHost("a", {{0, 0}}), FixedHost("b", {{0, 1}}),
                         ManagedHost("m", 1)});
  const auto plan = PlanAroundStandby(problem, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->hosted, PlanPlacement(problem, {})->hosted);
}

TEST(StandbyTest, MovesAreOfTheWholeMesh) {
  const PlacementProblem problem =
      Problem({90, 10}, {Standby(ManagedHost("s", 2)), FixedHost("a", {{0, 0}}),
                         FixedHost("b", {{0, 1}}), ManagedHost("m", 1)});
  const auto plan = PlanAroundStandby(problem, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(MoveTexts(plan->moves), ElementsAre("+3:0/0"));
  EXPECT_THAT(plan->hosted[0], IsEmpty());
  EXPECT_EQ(CarryOut(problem, plan->moves), plan->hosted);
}

TEST(StandbyTest, WhatTheyAloneHoldIsCovered) {
  const PlacementProblem problem =
      Problem({90, 10}, {FixedHost("a", {{0, 0}}),
                         Standby(ManagedHost("s", 2, {{0, 0}, {0, 1}}))});
  const auto plan = PlanAroundStandby(problem, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->moves, IsEmpty());
  EXPECT_THAT(plan->hosted[1], ElementsAre(SlotId{0, 0}, SlotId{0, 1}));
  // Only expert 1 is its work: 90 of 100 rows are the other's.
  EXPECT_DOUBLE_EQ(plan->after.slowest_over_mean, 1.8);
}

TEST(StandbyTest, TheyHoldWhatDoesNotFitElsewhere) {
  const PlacementProblem problem =
      Problem({50, 50}, {ManagedHost("m", 1), Standby(ManagedHost("s", 2))});
  const auto plan = PlanAroundStandby(problem, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(CarryOut(problem, plan->moves), plan->hosted);
  EXPECT_THAT(plan->hosted[1], ::testing::Not(IsEmpty()));
}

TEST(StandbyTest, AnEvacuationGoesToThemLast) {
  PlacementProblem problem =
      Problem({50, 50}, {FixedHost("a", {{0, 0}, {0, 1}}),
                         Standby(ManagedHost("s", 2)), ManagedHost("m", 2)});
  auto sequence = EvacuateAroundStandby(problem, 0);
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_THAT(sequence->reached[1], IsEmpty());
  problem.hosts[2].budget_bytes = 1;
  sequence = EvacuateAroundStandby(problem, 0);
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_THAT(sequence->reached[1], ::testing::Not(IsEmpty()));
}

}  // namespace
}  // namespace expertmesh::router
