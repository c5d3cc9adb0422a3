// Hand-made gate scores whose plans are written out by hand. In every table a
// row is a token, a column an expert.

#include "router_service/dispatch/dispatch_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/unit/router_service/dispatch/plan_text.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;

constexpr OverflowPolicy kWait = OverflowPolicy::kWait;
constexpr OverflowPolicy kNext = OverflowPolicy::kNextBest;
constexpr OverflowPolicy kDrop = OverflowPolicy::kDrop;

DispatchPlan Plan(const Gate& gate, const Routing& routing, int64_t capacity,
                  const std::vector<uint16_t>& replicas = {}) {
  DispatchPlanner planner(&gate, CapacityOf(capacity));
  DispatchPlan plan;
  planner.Build(routing, replicas, &plan);
  return plan;
}

TEST(DispatchPlanTest, WithoutOverflowRowsLieByExpertThenToken) {
  const Gate gate = MakeGate(3, 2);
  const Routing routing = MakeRouting(gate,
                                      {
                                          {0.5f, 0.3f, 0.2f},  // → 0, 1
                                          {0.1f, 0.3f, 0.6f},  // → 1, 2
                                          {0.5f, 0.1f, 0.4f},  // → 0, 2
                                      },
                                      {kWait, kNext, kDrop});
  const DispatchPlan plan = Plan(gate, routing, 2);
  EXPECT_EQ(WavesText(plan), "e0:0,2 e1:0,1 e2:1,2");
  EXPECT_EQ(ServedText(plan, 2), "0,1 1,2 0,2");
  EXPECT_EQ(OutcomesText(plan), "PP PP PP");
  EXPECT_THAT(plan.row_weight, ElementsAre(0.5f, 0.5f, 0.3f, 0.3f, 0.6f, 0.4f));
  EXPECT_EQ(plan.overflow_rows, 0);
  EXPECT_EQ(plan.max_expert_rows, 2);
}

TEST(DispatchPlanTest, WaitingRowsGoInWavesByScore) {
  const Gate gate = MakeGate(2, 1);
  // All want expert 0, which takes two at a time: by score 0, 4 | 2, 3 | 1.
  const Routing routing = MakeRouting(
      gate,
      {{0.9f, 0.1f}, {0.5f, 0.4f}, {0.7f, 0.3f}, {0.6f, 0.4f}, {0.8f, 0.2f}},
      std::vector(5, kWait));
  const DispatchPlan plan = Plan(gate, routing, 2);
  EXPECT_EQ(WavesText(plan), "e0:0,4 / e0:2,3 / e0:1");
  EXPECT_EQ(OutcomesText(plan), "P W W W P");
  EXPECT_EQ(plan.overflow_rows, 3);
  EXPECT_EQ(plan.max_expert_rows, 5);
  EXPECT_EQ(plan.accounts[1].GateMassKept(), 1.0);
}

TEST(DispatchPlanTest, OfEqualScoresTheEarlierTokenStays) {
  const Gate gate = MakeGate(2, 1);
  const Routing routing = MakeRouting(
      gate, {{0.6f, 0.4f}, {0.6f, 0.4f}, {0.7f, 0.3f}}, std::vector(3, kWait));
  EXPECT_EQ(WavesText(Plan(gate, routing, 1)), "e0:2 / e0:0 / e0:1");
}

TEST(DispatchPlanTest, WavesOfSeveralExpertsAreSharedAndCombineInExpertOrder) {
  const Gate gate = MakeGate(3, 2);
  // Capacity 1. Expert 0: token 1, then 0. Expert 1: token 0, then 1, then 2.
  // Expert 2: token 2.
  const Routing routing = MakeRouting(
      gate, {{0.4f, 0.6f, 0.0f}, {0.5f, 0.4f, 0.1f}, {0.0f, 0.3f, 0.7f}},
      std::vector(3, kWait));
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:0 e2:2 / e0:0 e1:1 / e1:2");
  // Token 0's expert 0 comes a wave after its expert 1, and is added first.
  EXPECT_EQ(ServedText(plan, 2), "0,1 0,1 1,2");
  EXPECT_THAT(WeightsOf(plan, 2, 0), ElementsAre(0.4f, 0.6f));
  EXPECT_EQ(OutcomesText(plan), "PW PW PW");
}

TEST(DispatchPlanTest, NextBestTakesTheNextExpertWithRoom) {
  const Gate gate = MakeGate(3, 1);
  // Expert 0 keeps token 1; token 0's next best is expert 1.
  const Routing routing = MakeRouting(
      gate, {{0.6f, 0.3f, 0.1f}, {0.7f, 0.1f, 0.2f}}, std::vector(2, kNext));
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:0");
  EXPECT_EQ(ServedText(plan, 1), "1 0");
  EXPECT_EQ(OutcomesText(plan), "N P");
  EXPECT_THAT(WeightsOf(plan, 1, 0), ElementsAre(0.3f));
  EXPECT_NEAR(plan.accounts[0].GateMassKept(), 0.5, 1e-6);
  EXPECT_EQ(plan.accounts[1].GateMassKept(), 1.0);
  EXPECT_EQ(plan.overflow_rows, 1);
}

TEST(DispatchPlanTest, NextBestChainsThroughTokensThatHaveLeastToLose) {
  const Gate gate = MakeGate(3, 1);
  // Expert 0 keeps token 1. Token 2 has 0.5 to lose and fills expert 1, so
  // token 0, which has 0.6 and expert 1 second as well, is left expert 2.
  const Routing routing = MakeRouting(
      gate, {{0.6f, 0.3f, 0.1f}, {0.7f, 0.2f, 0.1f}, {0.5f, 0.4f, 0.1f}},
      std::vector(3, kNext));
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:2 e2:0");
  EXPECT_EQ(OutcomesText(plan), "N P N");
}

TEST(DispatchPlanTest, OfEqualStakesTheEarlierTokenMoves) {
  const Gate gate = MakeGate(3, 1);
  const Routing routing = MakeRouting(
      gate, {{0.6f, 0.3f, 0.1f}, {0.7f, 0.2f, 0.1f}, {0.6f, 0.4f, 0.0f}},
      std::vector(3, kNext));
  EXPECT_EQ(WavesText(Plan(gate, routing, 1)), "e0:1 e1:0 e2:2");
}

TEST(DispatchPlanTest, NextBestWithoutRoomWaits) {
  const Gate gate = MakeGate(2, 1);
  // Expert 0 keeps token 2, token 0 takes expert 1, token 1 finds both full.
  const Routing routing = MakeRouting(
      gate, {{0.6f, 0.4f}, {0.7f, 0.3f}, {0.8f, 0.2f}}, std::vector(3, kNext));
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:2 e1:0 / e0:1");
  EXPECT_EQ(OutcomesText(plan), "N W P");
  EXPECT_EQ(plan.accounts[1].GateMassKept(), 1.0);
}

TEST(DispatchPlanTest, NextBestTiesGoToTheLowerExpert) {
  const Gate gate = MakeGate(4, 1);
  const Routing routing =
      MakeRouting(gate, {{0.9f, 0.0f, 0.0f, 0.1f}, {0.4f, 0.2f, 0.2f, 0.2f}},
                  std::vector(2, kNext));
  EXPECT_EQ(ServedText(Plan(gate, routing, 1), 1), "0 1");
}

TEST(DispatchPlanTest, NextBestKeepsTheFullExpertItAlreadyHolds) {
  const Gate gate = MakeGate(4, 2, /*norm_topk_prob=*/true);
  // Capacity 1. Token 1 has experts 0 and 2. Token 0 holds expert 1, which is
  // full because of it, loses expert 0, finds expert 2 full and takes 3. Both
  // weights are made anew: 0.5 / 0.54 and 0.04 / 0.54.
  const Routing routing = MakeRouting(
      gate, {{0.4f, 0.5f, 0.06f, 0.04f}, {0.6f, 0.05f, 0.3f, 0.05f}},
      std::vector(2, kNext));
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:0 e2:1 e3:0");
  EXPECT_EQ(ServedText(plan, 2), "1,3 0,2");
  EXPECT_EQ(OutcomesText(plan), "PN PP");
  EXPECT_THAT(WeightsOf(plan, 2, 0),
              ElementsAre(FloatEq(0.5f / 0.54f), FloatEq(0.04f / 0.54f)));
  EXPECT_NEAR(plan.accounts[0].GateMassKept(), 0.54 / 0.9, 1e-6);
}

TEST(DispatchPlanTest, NextBestThatFindsTooFewKeepsItsFirstChoice) {
  const Gate gate = MakeGate(3, 2, /*norm_topk_prob=*/true);
  // As above without expert 3: token 0 finds only expert 1 and waits for 0.
  const Routing routing = MakeRouting(
      gate, {{0.4f, 0.5f, 0.1f}, {0.6f, 0.1f, 0.3f}}, std::vector(2, kNext));
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:0 e2:1 / e0:0");
  EXPECT_EQ(OutcomesText(plan), "PW PP");
  EXPECT_THAT(WeightsOf(plan, 2, 0),
              ElementsAre(FloatEq(0.4f / 0.9f), FloatEq(0.5f / 0.9f)));
}

// Families that choose by more than the plain scores can, once experts are
// masked, no longer want one they hold. Here the first choice is set by hand.
// Capacity 1: token 1 has experts 0 and 2; token 0 lost 0, holds 1, and by its
// scores now wants 3 and 4.
Routing RoutingThatGivesBackExpert1(const Gate& gate) {
  Routing routing = MakeRouting(gate,
                                {
                                    {0.30f, 0.10f, 0.05f, 0.30f, 0.25f, 0.00f},
                                    {0.50f, 0.02f, 0.45f, 0.02f, 0.01f, 0.00f},
                                    {0.40f, 0.10f, 0.35f, 0.05f, 0.05f, 0.05f},
                                },
                                std::vector(3, kNext));
  routing.topk_ids[0] = 0;
  routing.topk_ids[1] = 1;
  return routing;
}

TEST(DispatchPlanTest, NextBestGivesBackWhatItNoLongerChooses) {
  const Gate gate = MakeGate(6, 2);
  // Token 2 lost experts 0 and 2 and finds 3 and 4 taken; it gets 1, which
  // token 0 gave back, and 5.
  const DispatchPlan plan = Plan(gate, RoutingThatGivesBackExpert1(gate), 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:2 e2:1 e3:0 e4:0 e5:2");
  EXPECT_EQ(ServedText(plan, 2), "3,4 0,2 1,5");
  EXPECT_EQ(OutcomesText(plan), "NN PP NN");
}

TEST(DispatchPlanTest, WaitingRowTakesAPlaceGivenBack) {
  const Gate gate = MakeGate(6, 2);
  // Token 2 waits for expert 1, whose only place token 0 held (0.10 > 0.08) and
  // gave back: nothing is left for a second wave.
  Routing routing = RoutingThatGivesBackExpert1(gate);
  routing.policy[2] = kWait;
  routing.scores[2 * 6 + 1] = 0.08f;
  routing.topk_ids[2 * 2] = 1;
  routing.topk_ids[2 * 2 + 1] = 5;
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:2 e2:1 e3:0 e4:0 e5:2");
  EXPECT_EQ(OutcomesText(plan), "NN PP PP");
}

TEST(DispatchPlanTest, DropLeavesRowsOutAndWeightsAlone) {
  const Gate gate = MakeGate(3, 2, /*norm_topk_prob=*/true);
  // Capacity 1. Expert 0 keeps token 1, expert 1 keeps token 0; token 2 loses
  // both of its rows.
  const Routing routing = MakeRouting(
      gate, {{0.4f, 0.6f, 0.0f}, {0.6f, 0.1f, 0.3f}, {0.5f, 0.5f, 0.0f}},
      std::vector(3, kDrop));
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:0 e2:1");
  EXPECT_EQ(ServedText(plan, 2), "1 0,2 -");
  EXPECT_EQ(OutcomesText(plan), "PD PP DD");
  EXPECT_THAT(WeightsOf(plan, 2, 0), ElementsAre(FloatEq(0.6f)));
  EXPECT_THAT(plan.token_rows, ElementsAre(1, -1, 0, 2, -1, -1));
  EXPECT_NEAR(plan.accounts[0].GateMassKept(), 0.6, 1e-6);
  EXPECT_EQ(plan.accounts[2].GateMassKept(), 0.0);
  EXPECT_EQ(plan.overflow_rows, 3);
}

TEST(DispatchPlanTest, PoliciesOfOneStepMixAndOnlyScoresRank) {
  const Gate gate = MakeGate(2, 1);
  // All want expert 0, which takes two: token 4 (drop) and token 3 (wait) by
  // score. Of the rest 0 waits, 1 goes to expert 1, 2 is dropped, 5 waits
  // behind 0.
  const Routing routing =
      MakeRouting(gate,
                  {{0.65f, 0.35f},
                   {0.75f, 0.25f},
                   {0.80f, 0.20f},
                   {0.90f, 0.10f},
                   {0.95f, 0.05f},
                   {0.60f, 0.40f}},
                  {kWait, kNext, kDrop, kWait, kDrop, kWait});
  const DispatchPlan plan = Plan(gate, routing, 2);
  EXPECT_EQ(WavesText(plan), "e0:3,4 e1:1 / e0:0,5");
  EXPECT_EQ(OutcomesText(plan), "W N D P P W");
  EXPECT_EQ(plan.overflow_rows, 4);
}

// The example of router_service/dispatch/README.md.
TEST(DispatchPlanTest, ExampleOfTheReadme) {
  const Gate gate = MakeGate(3, 1);
  const Routing routing = MakeRouting(gate,
                                      {{0.6f, 0.3f, 0.1f},
                                       {0.7f, 0.2f, 0.1f},
                                       {0.5f, 0.4f, 0.1f},
                                       {0.4f, 0.3f, 0.3f},
                                       {0.6f, 0.3f, 0.1f}},
                                      {kNext, kWait, kNext, kDrop, kWait});
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:2 e2:0 / e0:4");
  EXPECT_EQ(OutcomesText(plan), "N P N D W");
  EXPECT_NEAR(plan.accounts[0].GateMassKept(), 1.0 / 6, 1e-6);
}

uint32_t Counted(const DispatchPlan& plan, OverflowReason reason,
                 RowOutcome outcome) {
  return plan.overflow[static_cast<int>(reason)][static_cast<int>(outcome)];
}

TEST(DispatchPlanTest, RowsThatWouldLoseMoreThanIsLeftWait) {
  const Gate gate = MakeGate(5, 1);
  // Expert 0 keeps token 0. To go elsewhere costs token 1 0.5, token 2 0.2,
  // token 3 0.3 and token 4 0.1.
  Routing routing = MakeRouting(gate,
                                {{0.9f, 0.1f, 0.0f, 0.0f, 0.0f},
                                 {0.7f, 0.0f, 0.2f, 0.1f, 0.0f},
                                 {0.5f, 0.3f, 0.1f, 0.1f, 0.0f},
                                 {0.6f, 0.0f, 0.0f, 0.3f, 0.1f},
                                 {0.4f, 0.3f, 0.2f, 0.1f, 0.0f}},
                                {kNext, kNext, kNext, kNext, kNext});
  routing.allowance = {.mass = 0.65};
  const DispatchPlan plan = Plan(gate, routing, 1);
  // By stake: token 4 (leaves 0.55) to expert 1, token 2 to expert 2 at a cost
  // of 0.4 (0.15), tokens 3 and 1 would lose more.
  EXPECT_EQ(WavesText(plan), "e0:0 e1:4 e2:2 / e0:1 / e0:3");
  EXPECT_EQ(OutcomesText(plan), "P W N W N");
  EXPECT_EQ(Counted(plan, OverflowReason::kBudget, RowOutcome::kWaited), 2u);
  EXPECT_EQ(Counted(plan, OverflowReason::kCapacity, RowOutcome::kRerouted),
            2u);
}

TEST(DispatchPlanTest, DropsRowByRowWithinTheAllowance) {
  const Gate gate = MakeGate(3, 2);
  // Capacity 1. Expert 0 keeps token 1, expert 1 token 0; token 2 loses both.
  Routing routing = MakeRouting(
      gate, {{0.0f, 0.9f, 0.1f}, {0.9f, 0.0f, 0.1f}, {0.3f, 0.6f, 0.1f}},
      std::vector(3, kDrop));
  // A twentieth of the plan's own mass (2.9) beside a tenth: 0.245; token 1's
  // row of 0.1 at expert 2 goes, no other fits.
  routing.allowance = {.mass = 0.1, .share = 0.05};
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(OutcomesText(plan), "PP PD WW");
  EXPECT_EQ(Counted(plan, OverflowReason::kBudget, RowOutcome::kWaited), 2u);
  routing.allowance = {.mass = 0.45};
  EXPECT_EQ(OutcomesText(Plan(gate, routing, 1)), "PP PD WD");
  for (const double nothing : {0.0, -1.0}) {
    routing.allowance = {.mass = nothing};
    EXPECT_EQ(OutcomesText(Plan(gate, routing, 1)), "PP PW WW");
  }
}

TEST(DispatchPlanTest, RowsThatNobodyServesAreNotHeldBack) {
  const Gate gate = MakeGate(4, 1);
  // Nobody serves expert 0. Expert 1 keeps token 2.
  Routing routing = MakeRouting(gate,
                                {{0.6f, 0.0f, 0.4f, 0.0f},
                                 {0.7f, 0.3f, 0.0f, 0.0f},
                                 {0.1f, 0.9f, 0.0f, 0.0f},
                                 {0.0f, 0.3f, 0.2f, 0.2f}},
                                {kNext, kDrop, kWait, kNext});
  routing.allowance = {.mass = 0.85};
  const DispatchPlan plan = Plan(gate, routing, 1, {0, 1, 1, 1});
  // Tokens 0 and 1 lose 0.9; token 3 could have lost 0.1.
  EXPECT_EQ(WavesText(plan), "e1:2 e2:0 / e1:3");
  EXPECT_EQ(OutcomesText(plan), "N D P W");
  EXPECT_EQ(Counted(plan, OverflowReason::kUncovered, RowOutcome::kRerouted),
            1u);
  EXPECT_EQ(Counted(plan, OverflowReason::kUncovered, RowOutcome::kDropped),
            1u);
  EXPECT_EQ(Counted(plan, OverflowReason::kBudget, RowOutcome::kWaited), 1u);
}

TEST(DispatchPlanTest, AllExpertsFull) {
  const Gate gate = MakeGate(2, 2);
  // Every token needs both experts, so next_best has nowhere to go.
  const std::vector<std::vector<float>> scores = {
      {0.5f, 0.5f}, {0.6f, 0.4f}, {0.3f, 0.7f}};
  EXPECT_EQ(WavesText(Plan(
                gate, MakeRouting(gate, scores, std::vector(3, kNext)), 1)),
            "e0:1 e1:2 / e0:0 e1:0 / e0:2 e1:1");
  EXPECT_EQ(WavesText(Plan(
                gate, MakeRouting(gate, scores, std::vector(3, kDrop)), 1)),
            "e0:1 e1:2");
}

TEST(DispatchPlanTest, ReplicasTakeOverflowBeforeAnyPolicy) {
  const Gate gate = MakeGate(2, 1);
  // All want expert 0. Each replica takes two: by score 0, 4 | 2, 3 | 1.
  const std::vector<std::vector<float>> scores = {
      {0.9f, 0.1f}, {0.5f, 0.4f}, {0.7f, 0.3f}, {0.6f, 0.4f}, {0.8f, 0.2f}};
  const DispatchPlan two =
      Plan(gate, MakeRouting(gate, scores, std::vector(5, kWait)), 2, {2, 1});
  EXPECT_EQ(WavesText(two), "e0:0,2,3,4 / e0:1");
  EXPECT_EQ(OutcomesText(two), "P W R R P");
  EXPECT_EQ(two.overflow_rows, 3);
  const DispatchPlan three =
      Plan(gate, MakeRouting(gate, scores, std::vector(5, kDrop)), 2, {3, 1});
  EXPECT_EQ(WavesText(three), "e0:0,1,2,3,4");
  EXPECT_EQ(OutcomesText(three), "P R R R P");
  const DispatchPlan next =
      Plan(gate, MakeRouting(gate, scores, std::vector(5, kNext)), 2, {2, 1});
  EXPECT_EQ(WavesText(next), "e0:0,2,3,4 e1:1");
  EXPECT_EQ(OutcomesText(next), "P N R R P");
}

TEST(DispatchPlanTest, RowsOfAnUncoveredExpertWaitOrGoElsewhere) {
  const Gate gate = MakeGate(3, 1);
  const DispatchPlan plan = Plan(gate,
                                 MakeRouting(gate,
                                             {{0.9f, 0.1f, 0.0f},
                                              {0.8f, 0.1f, 0.1f},
                                              {0.7f, 0.2f, 0.1f},
                                              {0.1f, 0.9f, 0.0f}},
                                             {kWait, kNext, kDrop, kWait}),
                                 64, {0, 1, 1});
  EXPECT_EQ(WavesText(plan), "e0:0 e1:1,3");
  EXPECT_EQ(OutcomesText(plan), "P N D P");
  EXPECT_EQ(plan.overflow_rows, 3);
  EXPECT_EQ(plan.uncovered_rows, 3);
}

TEST(DispatchPlanTest, FactorZeroSetsNoLimit) {
  const Gate gate = MakeGate(2, 1);
  DispatchPlanner planner(&gate, {.capacity_factor = 0, .min_capacity = 1});
  DispatchPlan plan;
  planner.Build(MakeRouting(gate, std::vector(9, std::vector{0.9f, 0.1f}),
                            std::vector(9, kDrop)),
                {}, &plan);
  EXPECT_EQ(WavesText(plan), "e0:0,1,2,3,4,5,6,7,8");
  EXPECT_EQ(plan.overflow_rows, 0);
  EXPECT_EQ(plan.max_expert_rows, 9);
}

TEST(DispatchPlanTest, NoTokensGiveAnEmptyPlan) {
  const Gate gate = MakeGate(4, 2);
  const DispatchPlan plan = Plan(gate, MakeRouting(gate, {}, {}), 1);
  EXPECT_EQ(plan.num_rows(), 0);
  EXPECT_EQ(plan.num_waves(), 0);
  EXPECT_TRUE(plan.token_rows.empty());
  EXPECT_TRUE(plan.accounts.empty());
}

TEST(DispatchPlanTest, ScoresThatAreNotNumbersOverflowFirst) {
  const Gate gate = MakeGate(2, 1);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const Routing routing = MakeRouting(
      gate, {{kNan, kNan}, {0.6f, 0.4f}, {kNan, kNan}}, {kWait, kWait, kNext});
  const DispatchPlan plan = Plan(gate, routing, 1);
  EXPECT_EQ(WavesText(plan), "e0:1 e1:2 / e0:0");
}

TEST(ExpertCapacityTest, FollowsTheFormula) {
  const CapacityOptions defaults;
  EXPECT_EQ(ExpertCapacity(defaults, 512, 8, 256), 64);    // ⌈32⌉ < 64
  EXPECT_EQ(ExpertCapacity(defaults, 4096, 8, 256), 256);  // 2 · 128
  EXPECT_EQ(ExpertCapacity({1.0, 0}, 10, 1, 3), 4);        // ⌈10 / 3⌉
  EXPECT_EQ(ExpertCapacity({1.25, 2}, 8, 2, 4), 5);
  EXPECT_EQ(ExpertCapacity({1e-9, 0}, 1, 1, 256), 1);
  EXPECT_EQ(ExpertCapacity({1e300, 0}, 8, 2, 4),
            std::numeric_limits<int64_t>::max());
  EXPECT_EQ(ExpertCapacity({0, 64}, 8, 2, 4),
            std::numeric_limits<int64_t>::max());
}

TEST(OverflowPolicyTest, NamesRoundTrip) {
  for (const OverflowPolicy policy : {kWait, kNext, kDrop}) {
    EXPECT_EQ(*ParseOverflowPolicy(OverflowPolicyName(policy)), policy);
  }
  EXPECT_EQ(ParseOverflowPolicy("later").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertmesh::router
