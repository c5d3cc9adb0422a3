#include "router_service/dispatch/plan_repair.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/unit/router_service/dispatch/plan_text.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::IsEmpty;

constexpr OverflowPolicy kWait = OverflowPolicy::kWait;
constexpr OverflowPolicy kNext = OverflowPolicy::kNextBest;
constexpr OverflowPolicy kDrop = OverflowPolicy::kDrop;

class PlanRepairTest : public ::testing::Test {
 protected:
  void Build(const Gate& gate, const Routing& routing, int64_t capacity) {
    DispatchPlanner planner(&gate, CapacityOf(capacity));
    planner.Build(routing, {}, &plan_);
  }
  void Repair(const Gate& gate, const Routing& routing,
              const std::vector<uint16_t>& replicas,
              const std::vector<uint32_t>& lost) {
    lost_mass_ =
        PlanRepair(&gate).Repair(routing, replicas, lost, &plan_, &wanted_);
  }
  uint32_t Counted(RowOutcome outcome) const {
    return plan_.overflow[static_cast<int>(OverflowReason::kUncovered)]
                         [static_cast<int>(outcome)];
  }

  DispatchPlan plan_;
  std::vector<uint32_t> wanted_;
  double lost_mass_ = 0;
};

TEST_F(PlanRepairTest, EveryPolicyDoesItsPartAndOthersStay) {
  const Gate gate = MakeGate(4, 2, /*norm_topk_prob=*/true);
  const Routing routing = MakeRouting(gate,
                                      {
                                          {0.50f, 0.30f, 0.15f, 0.05f},
                                          {0.40f, 0.10f, 0.20f, 0.30f},
                                          {0.45f, 0.05f, 0.30f, 0.20f},
                                          {0.10f, 0.50f, 0.30f, 0.10f},
                                      },
                                      {kNext, kWait, kDrop, kNext});
  Build(gate, routing, 64);
  ASSERT_EQ(WavesText(plan_), "e0:0,1,2 e1:0,3 e2:2,3 e3:1");
  const std::vector<float> before = WeightsOf(plan_, 2, 2);
  // Nobody serves expert 0 any more. Token 0 keeps its row of expert 1 and gets
  // one of expert 2 in the place of the lost one.
  Repair(gate, routing, {0, 1, 1, 1}, {0, 1, 2});
  EXPECT_THAT(wanted_, ElementsAre(0));
  EXPECT_EQ(WavesText(plan_), "e2:0 e0:1 e1:0,3 e2:2,3 e3:1");
  EXPECT_EQ(ServedText(plan_, 2), "1,2 0,3 2 1,2");
  EXPECT_EQ(OutcomesText(plan_), "PN PP PD PP");
  EXPECT_THAT(WeightsOf(plan_, 2, 0),
              ElementsAre(FloatEq(0.30f / 0.45f), FloatEq(0.15f / 0.45f)));
  EXPECT_THAT(WeightsOf(plan_, 2, 2), ElementsAre(before[1]));
  EXPECT_NEAR(plan_.accounts[0].GateMassKept(), 0.45 / 0.8, 1e-6);
  EXPECT_NEAR(plan_.accounts[2].GateMassKept(), 0.3 / 0.75, 1e-6);
  EXPECT_NEAR(lost_mass_, 0.35 + 0.45, 1e-6);
  EXPECT_EQ(plan_.uncovered_rows, 2);
  EXPECT_EQ(plan_.overflow_rows, 2);
  EXPECT_EQ(Counted(RowOutcome::kRerouted), 1u);
  EXPECT_EQ(Counted(RowOutcome::kDropped), 1u);
}

TEST_F(PlanRepairTest, WhoFindsTooFewExpertsKeepsWhatItHas) {
  const Gate gate = MakeGate(3, 2);
  const Routing routing = MakeRouting(gate, {{0.5f, 0.3f, 0.2f}}, {kNext});
  Build(gate, routing, 64);
  Repair(gate, routing, {0, 1, 0}, {0});
  EXPECT_THAT(wanted_, IsEmpty());
  EXPECT_EQ(ServedText(plan_, 2), "0,1");
  EXPECT_EQ(OutcomesText(plan_), "PP");
  EXPECT_EQ(plan_.uncovered_rows, 0);
  EXPECT_EQ(lost_mass_, 0);
}

TEST_F(PlanRepairTest, RowsThatAreBackCountWhoeverServesTheirExpertNow) {
  const Gate gate = MakeGate(3, 2);
  const Routing routing = MakeRouting(gate, {{0.5f, 0.3f, 0.2f}}, {kNext});
  Build(gate, routing, 64);
  Repair(gate, routing, {0, 0, 1}, {0});
  EXPECT_EQ(ServedText(plan_, 2), "1,2");
  EXPECT_THAT(wanted_, ElementsAre(0));
}

TEST_F(PlanRepairTest, ARowThatGoesBackToItsFirstChoiceHasWaited) {
  const Gate gate = MakeGate(3, 1);
  const Routing routing = MakeRouting(
      gate, {{0.6f, 0.3f, 0.1f}, {0.7f, 0.2f, 0.1f}}, {kNext, kWait});
  Build(gate, routing, 1);
  ASSERT_EQ(OutcomesText(plan_), "N P");
  Repair(gate, routing, {1, 0, 1}, {1});
  EXPECT_EQ(ServedText(plan_, 1), "0 0");
  EXPECT_EQ(OutcomesText(plan_), "W P");
  EXPECT_NEAR(lost_mass_, -0.3, 1e-6);
  EXPECT_NEAR(plan_.accounts[0].GateMassKept(), 1, 1e-6);
  // And is lost once more.
  const std::vector<uint32_t> again = wanted_;
  Repair(gate, routing, {0, 0, 1}, again);
  EXPECT_EQ(OutcomesText(plan_), "N P");
  EXPECT_NEAR(lost_mass_, 0.5, 1e-6);
}

TEST_F(PlanRepairTest, LaterWavesStayLater) {
  const Gate gate = MakeGate(3, 1);
  // Expert 0, a row a wave: token 2, then 0, then 1; the last two are lost.
  const Routing routing =
      MakeRouting(gate, {{0.7f, 0.2f, 0.1f}, {0.6f, 0.3f, 0.1f}, {0.8f}},
                  {kDrop, kNext, kWait});
  Routing waits = routing;
  waits.policy.assign(3, kWait);
  Build(gate, waits, 1);
  ASSERT_EQ(WavesText(plan_), "e0:2 / e0:0 / e0:1");
  Repair(gate, routing, {0, 1, 1}, {1, 2});
  EXPECT_EQ(WavesText(plan_), "e0:2 /  / e1:1");
  EXPECT_EQ(OutcomesText(plan_), "D N P");
}

// Whole experts are lost: tokens must be served as if those had never been
// there, and tokens that do not need them as before.
TEST_F(PlanRepairTest, RandomPlans) {
  std::mt19937 random(5);
  const Gate gate = MakeGate(10, 3, /*norm_topk_prob=*/true);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<std::vector<float>> scores(30);
    std::vector<OverflowPolicy> policy;
    for (auto& token : scores) {
      for (int expert = 0; expert < 10; ++expert) {
        token.push_back(static_cast<float>(random() % 4096) / 4096);
      }
      policy.push_back(static_cast<OverflowPolicy>(random() % 3));
    }
    const Routing routing = MakeRouting(gate, scores, policy);
    Build(gate, routing, 64);
    const DispatchPlan before = plan_;
    std::vector<uint16_t> replicas(10);
    for (uint16_t& count : replicas) count = random() % 4 > 0;
    std::vector<uint32_t> lost;
    for (uint32_t row = 0; row < plan_.row_token.size(); ++row) {
      if (replicas[plan_.ExpertOf(row)] == 0) lost.push_back(row);
    }
    Repair(gate, routing, replicas, lost);

    std::vector<uint8_t> masked;
    for (const uint16_t count : replicas) masked.push_back(count == 0);
    ASSERT_EQ(plan_.row_token, before.row_token);
    for (int64_t token = 0; token < 30; ++token) {
      std::vector<int32_t> expected;
      std::vector<float> weights;
      for (int64_t place = 0; place < 3; ++place) {
        const int32_t row = before.token_rows[token * 3 + place];
        if (policy[token] == kDrop && masked[before.ExpertOf(row)]) continue;
        expected.push_back(before.ExpertOf(row));
        weights.push_back(before.row_weight[row]);
      }
      std::vector<int32_t> ids(3);
      std::vector<float> new_weights(3);
      if (policy[token] == kNext &&
          gate.Choose(scores[token], masked, absl::MakeSpan(ids),
                      absl::MakeSpan(new_weights)) == 3) {
        expected = ids;
        weights = new_weights;
      }
      std::vector<int32_t> served;
      double kept = 0;
      for (int64_t place = 0; place < 3; ++place) {
        const int32_t row = plan_.token_rows[token * 3 + place];
        if (row < 0) break;
        ASSERT_EQ(plan_.row_token[row], token);
        served.push_back(plan_.ExpertOf(row));
        kept += scores[token][served.back()];
      }
      ASSERT_EQ(served, expected);
      ASSERT_EQ(WeightsOf(plan_, 3, token), weights);
      const RoutingAccount& account = plan_.accounts[token];
      ASSERT_NEAR(account.kept_mass, kept, 1e-6);
      ASSERT_EQ(account[RowOutcome::kDropped], 3 - served.size());
      uint32_t rows = 0;
      for (const uint32_t count : account.rows) rows += count;
      ASSERT_EQ(rows, 3u);
    }
  }
}

}  // namespace
}  // namespace expertmesh::router
