#include "router_service/control/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

PlacementPlan Plan(const PlacementProblem& problem,
                   const PlannerOptions& options = {}) {
  const auto plan = PlanPlacement(problem, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (!plan.ok()) return {};
  EXPECT_EQ(CarryOut(problem, plan->moves), plan->hosted);
  return *plan;
}

TEST(PlannerTest, ReplicatesTheHeavySlot) {
  PlacementProblem problem = MakeProblem(1, {60, 20, 20, 20});
  problem.hosts = {ManagedHost("a", 2), ManagedHost("b", 2),
                   ManagedHost("c", 2)};
  const PlacementPlan plan = Plan(problem);
  EXPECT_DOUBLE_EQ(plan.after.slowest_over_mean, 1);
  for (const auto& slots : plan.hosted) {
    EXPECT_EQ(slots.size(), 2u);
    EXPECT_EQ(slots[0].expert, 0);
  }
  EXPECT_EQ(plan.bytes_to_load, 6);
}

TEST(PlannerTest, EachLayerIsBalancedByItself) {
  // By totals, a host with all of layer 0 and one with all of layer 1 would be
  // even; neither would work while the other does.
  PlacementProblem problem = MakeProblem(2, {10, 10, 10, 10});
  problem.hosts = {ManagedHost("a", 2), ManagedHost("b", 2)};
  EXPECT_DOUBLE_EQ(Plan(problem).after.slowest_over_mean, 1);
}

TEST(PlannerTest, FasterHostsGetMore) {
  PlacementProblem problem = MakeProblem(1, {10, 10, 10, 10});
  problem.hosts = {ManagedHost("slow", 3), ManagedHost("fast", 3)};
  problem.hosts[1].speed = 3;
  const PlacementPlan plan = Plan(problem);
  // One slot whole on the slow host, three on the fast one.
  EXPECT_DOUBLE_EQ(plan.after.slowest_over_mean, 1);
}

TEST(PlannerTest, RelievesFixedHostsFromThePool) {
  PlacementProblem problem = MakeProblem(1, {30, 30, 5, 5});
  problem.hosts = {FixedHost("base-0", {{0, 0}, {0, 1}}),
                   FixedHost("base-1", {{0, 2}, {0, 3}}),
                   ManagedHost("hot", 1)};
  const PlacementPlan plan = Plan(problem);
  EXPECT_THAT(plan.hosted[0], ElementsAre(SlotId{0, 0}, SlotId{0, 1}));
  EXPECT_THAT(plan.hosted[1], ElementsAre(SlotId{0, 2}, SlotId{0, 3}));
  ASSERT_EQ(plan.hosted[2].size(), 1u);
  EXPECT_LE(plan.hosted[2][0].expert, 1);
  EXPECT_DOUBLE_EQ(plan.after.slowest_over_mean, 45 / (70.0 / 3));
}

TEST(PlannerTest, TheBusiestHostCountsNotTheBusiestSlot) {
  // Slot 0 is the heaviest, but alone on its host; the host of 1 to 3 is the
  // slowest.
  PlacementProblem problem = MakeProblem(1, {20, 16, 15, 14});
  problem.hosts = {FixedHost("base-0", {{0, 0}}),
                   FixedHost("base-1", {{0, 1}, {0, 2}, {0, 3}}),
                   ManagedHost("hot", 2)};
  const PlacementPlan plan = Plan(problem);
  EXPECT_THAT(plan.hosted[2], ElementsAre(SlotId{0, 1}, SlotId{0, 2}));
}

TEST(PlannerTest, NamesASlotThatHasNoRoom) {
  PlacementProblem problem = MakeProblem(1, {1, 1, 1});
  problem.hosts = {ManagedHost("a", 1), FixedHost("b", {{0, 2}})};
  const auto plan = PlanPlacement(problem, {});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("no host has room for expert 1 of layer 0"));
}

TEST(PlannerTest, NothingMovesForAGainTooSmall) {
  PlacementProblem problem = MakeProblem(1, {101, 100, 100, 101});
  problem.hosts = {ManagedHost("a", 2, {{0, 0}, {0, 3}}),
                   ManagedHost("b", 2, {{0, 1}, {0, 2}})};
  EXPECT_THAT(Plan(problem).moves, IsEmpty());
  // It does where moves are free, and there is room to move in.
  problem.hosts.push_back(ManagedHost("spare", 1));
  problem.hosts[2].speed = 1e-9;
  const PlacementPlan plan = Plan(problem, {.move_penalty = 0});
  EXPECT_LT(plan.after.slowest_over_mean, plan.before.slowest_over_mean);
}

TEST(PlannerTest, ReplansWithFewMoves) {
  // Balanced, until expert 7 becomes hot.
  PlacementProblem problem = MakeProblem(1, {10, 10, 10, 10, 10, 10, 10, 40});
  problem.hosts = {ManagedHost("a", 3, {{0, 0}, {0, 1}}),
                   ManagedHost("b", 3, {{0, 2}, {0, 3}}),
                   ManagedHost("c", 3, {{0, 4}, {0, 5}}),
                   ManagedHost("d", 3, {{0, 6}, {0, 7}})};
  const PlacementPlan plan = Plan(problem);
  EXPECT_LT(plan.after.slowest_over_mean, 1.15);
  EXPECT_LE(plan.bytes_to_load, 4);
}

TEST(PlannerTest, HostWithoutBudgetIsEmptiedAfterOthersHaveLoaded) {
  PlacementProblem problem = MakeProblem(1, {1, 2});
  problem.hosts = {ManagedHost("leaves", 0, {{0, 0}, {0, 1}}),
                   ManagedHost("stays", 2)};
  const PlacementPlan plan = Plan(problem);
  EXPECT_THAT(MoveTexts(plan.moves),
              ElementsAre("+1:0/1", "+1:0/0", "-0:0/0", "-0:0/1"));
}

TEST(PlannerTest, WithoutDemandEverySlotIsHeldOnce) {
  PlacementProblem problem = MakeProblem(2, std::vector<double>(8));
  problem.hosts = {ManagedHost("a", 8), ManagedHost("b", 8)};
  const PlacementPlan plan = Plan(problem);
  EXPECT_EQ(plan.hosted[0].size(), 4u);
  EXPECT_EQ(plan.hosted[1].size(), 4u);
}

TEST(PlannerTest, OversizedBudgetsAreNoTrouble) {
  PlacementProblem problem = MakeProblem(1, {3, 1});
  problem.hosts = {ManagedHost("a", int64_t{1} << 60),
                   ManagedHost("b", int64_t{1} << 60)};
  const PlacementPlan plan = Plan(problem);
  EXPECT_DOUBLE_EQ(plan.after.slowest_over_mean, 1);
}

TEST(PlannerTest, SlotsOfDifferentSizeGetRoomFromSpareCopies) {
  // Layer 1 weighs three times as much; its slots fit only where copies of
  // layer 0 do not take the room.
  PlacementProblem problem = MakeProblem(2, {9, 9, 1, 1});
  problem.slot_bytes = {1, 3};
  problem.hosts = {ManagedHost("a", 4), ManagedHost("b", 4)};
  const PlacementPlan plan = Plan(problem);
  EXPECT_TRUE(CheckPlacement(problem, plan.hosted).ok());
}

}  // namespace
}  // namespace expertmesh::router
