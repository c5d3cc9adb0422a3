#include "router_service/control/rebalance_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/fake_clock.h"

namespace expertmesh::router {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

PlacementMove Load(int32_t expert, int64_t bytes = 100) {
  return {PlacementMove::Kind::kLoad, 0, {0, expert}, bytes};
}
PlacementMove Unload(int32_t expert) {
  return {PlacementMove::Kind::kUnload, 0, {0, expert}, 100};
}

PlacementPlan PlanOf(double before, double after,
                     std::vector<PlacementMove> moves) {
  PlacementPlan plan;
  plan.before.slowest_over_mean = before;
  plan.after.slowest_over_mean = after;
  plan.moves = std::move(moves);
  return plan;
}

class RebalancePolicyTest : public ::testing::Test {
 protected:
  // What is to be done now, and done at once.
  static RebalanceDecision Run(RebalancePolicy* policy,
                               const PlacementPlan& plan) {
    RebalanceDecision decision = policy->Consider(plan);
    if (!decision.moves.empty()) policy->Ended(/*ok=*/true);
    return decision;
  }

  FakeClock clock_;
};

TEST_F(RebalancePolicyTest, WaitsForConsecutiveWindows) {
  RebalancePolicy policy({.min_windows = 3}, &clock_);
  const PlacementPlan good = PlanOf(2, 1.5, {Load(1), Unload(2)});
  const PlacementPlan poor = PlanOf(2, 1.9, {Load(1), Unload(2)});
  EXPECT_THAT(policy.Consider(good).moves, IsEmpty());
  EXPECT_THAT(policy.Consider(good).moves, IsEmpty());
  EXPECT_THAT(policy.Consider(poor).reason, HasSubstr("5.0%"));
  EXPECT_THAT(policy.Consider(good).moves, IsEmpty());
  EXPECT_THAT(policy.Consider(good).reason, HasSubstr("window 2 of 3"));
  const RebalanceDecision decision = policy.Consider(good);
  EXPECT_THAT(decision.moves, SizeIs(2));
  EXPECT_THAT(decision.reason, HasSubstr("25.0%"));
}

TEST_F(RebalancePolicyTest, PausesBetweenRebalances) {
  RebalancePolicy policy({.min_windows = 1, .min_pause = absl::Seconds(60)},
                         &clock_);
  const PlacementPlan plan = PlanOf(2, 1, {Load(1)});
  EXPECT_THAT(policy.Consider(plan).moves, SizeIs(1));
  clock_.Advance(absl::Minutes(10));  // that is how long the moves take
  policy.Ended(/*ok=*/true);
  clock_.Advance(absl::Seconds(59));
  const RebalanceDecision decision = policy.Consider(plan);
  EXPECT_THAT(decision.moves, IsEmpty());
  EXPECT_THAT(decision.reason, HasSubstr("59s ago"));
  clock_.Advance(absl::Seconds(1));
  EXPECT_THAT(policy.Consider(plan).moves, SizeIs(1));
}

TEST_F(RebalancePolicyTest, GoesOnWithinTheByteBudget) {
  RebalancePolicy policy({.min_windows = 2, .bytes_per_minute = 200}, &clock_);
  const PlacementPlan plan =
      PlanOf(2, 1, {Load(1), Unload(7), Load(2), Unload(8), Load(3)});
  policy.Consider(plan);
  RebalanceDecision decision = Run(&policy, plan);
  EXPECT_THAT(decision.moves, SizeIs(3));  // what only makes room for 3 stays
  // What is left is planned anew; there is no wait for windows or pause.
  const PlacementPlan rest = PlanOf(1.5, 1, {Unload(8), Load(3)});
  decision = policy.Consider(rest);
  EXPECT_THAT(decision.moves, IsEmpty());
  EXPECT_THAT(decision.reason, HasSubstr("budget"));
  clock_.Advance(absl::Seconds(30));
  decision = Run(&policy, rest);
  EXPECT_THAT(decision.moves, SizeIs(2));
  // Now it has ended.
  clock_.Advance(absl::Seconds(30));
  policy.Consider(plan);
  EXPECT_THAT(policy.Consider(plan).reason, HasSubstr("30s ago"));
}

TEST_F(RebalancePolicyTest, ARestThatIsWorthLittleEndsTheRebalance) {
  RebalancePolicy policy({.min_windows = 1, .bytes_per_minute = 100}, &clock_);
  EXPECT_THAT(Run(&policy, PlanOf(2, 1, {Load(1), Load(2)})).moves, SizeIs(1));
  clock_.Advance(absl::Minutes(1));
  EXPECT_THAT(policy.Consider(PlanOf(1.05, 1, {Load(2)})).moves, IsEmpty());
  EXPECT_THAT(policy.Consider(PlanOf(2, 1, {Load(2)})).reason,
              HasSubstr("ago"));
}

TEST_F(RebalancePolicyTest, SlotLargerThanTheBudgetGoesOnCredit) {
  RebalancePolicy policy({.min_windows = 1,
                          .min_pause = absl::ZeroDuration(),
                          .bytes_per_minute = 100},
                         &clock_);
  const PlacementPlan plan = PlanOf(2, 1, {Unload(9), Load(1, 250), Load(2)});
  EXPECT_THAT(Run(&policy, plan).moves, SizeIs(2));
  clock_.Advance(absl::Seconds(149));  // 150 in debt, then 98 saved up
  EXPECT_THAT(policy.Consider(PlanOf(2, 1, {Load(2)})).moves, IsEmpty());
  clock_.Advance(absl::Seconds(2));
  EXPECT_THAT(policy.Consider(PlanOf(2, 1, {Load(2)})).moves, SizeIs(1));
}

TEST_F(RebalancePolicyTest, AFailedRunWaitsForWindowsAndPauseAgain) {
  RebalancePolicy policy({.min_windows = 2, .bytes_per_minute = 100}, &clock_);
  const PlacementPlan plan = PlanOf(2, 1, {Load(1), Load(2)});
  policy.Consider(plan);
  EXPECT_THAT(policy.Consider(plan).moves, SizeIs(1));
  policy.Ended(/*ok=*/false);
  clock_.Advance(absl::Seconds(59));
  EXPECT_THAT(policy.Consider(plan).reason, HasSubstr("window 1 of 2"));
  EXPECT_THAT(policy.Consider(plan).reason, HasSubstr("59s ago"));
  clock_.Advance(absl::Seconds(1));
  EXPECT_THAT(policy.Consider(plan).moves, SizeIs(1));
}

TEST_F(RebalancePolicyTest, WhatIsUrgentWaitsForAServiceThatRestarts) {
  RebalancePolicy policy({.urgent_after = absl::Seconds(5)}, &clock_);
  const RebalanceDecision decision = policy.ConsiderUrgent({Load(1)}, "lost");
  EXPECT_THAT(decision.moves, IsEmpty());
  EXPECT_THAT(decision.reason, HasSubstr("lost"));
  EXPECT_EQ(decision.look_again, absl::Seconds(5));
  clock_.Advance(absl::Seconds(3));
  policy.Consider(PlanOf(1, 1, {}));  // it is back
  clock_.Advance(absl::Seconds(3));
  EXPECT_THAT(policy.ConsiderUrgent({Load(1)}, "lost").moves, IsEmpty());
  clock_.Advance(absl::Seconds(5));
  EXPECT_THAT(policy.ConsiderUrgent({Load(1)}, "lost").moves, SizeIs(1));
}

TEST_F(RebalancePolicyTest, WhatIsUrgentIsChargedToTheByteBudget) {
  RebalancePolicy policy({.min_windows = 1,
                          .bytes_per_minute = 100,
                          .urgent_after = absl::ZeroDuration()},
                         &clock_);
  EXPECT_THAT(policy.ConsiderUrgent({Load(1), Load(2)}, "lost").moves,
              SizeIs(2));
  policy.Ended(/*ok=*/true);
  clock_.Advance(absl::Seconds(119));  // 100 in debt, then 98 saved up
  const PlacementPlan plan = PlanOf(2, 1, {Load(3)});
  EXPECT_THAT(policy.Consider(plan).reason, HasSubstr("budget"));
  clock_.Advance(absl::Seconds(2));
  EXPECT_THAT(policy.Consider(plan).moves, SizeIs(1));
}

TEST_F(RebalancePolicyTest, WhatIsUrgentAndFailsIsTriedLessAndLessOften) {
  RebalancePolicy policy(
      {.min_pause = absl::Seconds(15), .urgent_after = absl::Seconds(5)},
      &clock_);
  policy.ConsiderUrgent({Load(1)}, "lost");
  for (const int seconds : {5, 5, 10, 15, 15}) {
    clock_.Advance(absl::Seconds(seconds) - absl::Milliseconds(1));
    EXPECT_THAT(policy.ConsiderUrgent({Load(1)}, "lost").moves, IsEmpty());
    clock_.Advance(absl::Milliseconds(1));
    // Looked at all the while.
    EXPECT_THAT(policy.ConsiderUrgent({Load(1)}, "lost").moves, SizeIs(1));
    policy.Ended(/*ok=*/false);
    EXPECT_THAT(policy.ConsiderUrgent({Load(1)}, "lost").moves, IsEmpty());
  }
}

TEST_F(RebalancePolicyTest, NoMovesNoRebalance) {
  RebalancePolicy policy({.min_windows = 1}, &clock_);
  EXPECT_THAT(policy.Consider(PlanOf(2, 1, {})).moves, IsEmpty());
}

TEST(AffordablePrefixTest, EndsWithALoadOrIsWhole) {
  const std::vector<PlacementMove> moves = {Load(1), Unload(5), Load(2),
                                            Unload(6)};
  EXPECT_THAT(AffordablePrefix(moves, 200), SizeIs(4));
  EXPECT_THAT(AffordablePrefix(moves, 199), SizeIs(1));
  EXPECT_THAT(AffordablePrefix(moves, 99), IsEmpty());
  const std::vector<PlacementMove> unloads = {Unload(1), Unload(2)};
  EXPECT_THAT(AffordablePrefix(unloads, 0), SizeIs(2));
}

}  // namespace
}  // namespace expertmesh::router
