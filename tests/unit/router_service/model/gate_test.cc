#include "router_service/model/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "tests/reference/moe_reference.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Gate MakeGate(int64_t num_experts, int64_t top_k, bool norm) {
  ModelConfig config;
  config.num_experts = num_experts;
  config.top_k = top_k;
  config.norm_topk_prob = norm;
  return Gate(config);
}

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice Choose(const Gate& gate, const std::vector<float>& scores,
              const std::vector<uint8_t>& masked = {}) {
  Choice choice{std::vector<int32_t>(gate.top_k()),
                std::vector<float>(gate.top_k())};
  const int64_t count = gate.Choose(scores, masked, absl::MakeSpan(choice.ids),
                                    absl::MakeSpan(choice.weights));
  choice.ids.resize(count);
  choice.weights.resize(count);
  return choice;
}

TEST(GateTest, ScoresAreSoftmaxAndMayAlias) {
  const Gate gate = MakeGate(3, 1, false);
  std::vector<float> logits = {std::log(1.0f), std::log(2.0f), std::log(5.0f)};
  gate.Score(logits, absl::MakeSpan(logits));
  EXPECT_THAT(logits,
              ElementsAre(FloatEq(0.125f), FloatEq(0.25f), FloatEq(0.625f)));
}

TEST(GateTest, LargeLogitsDoNotOverflow) {
  const Gate gate = MakeGate(2, 1, false);
  std::vector<float> scores(2);
  gate.Score(std::vector<float>{1e30f, -1e30f}, absl::MakeSpan(scores));
  EXPECT_THAT(scores, ElementsAre(1.0f, 0.0f));
}

TEST(GateTest, ChoosesHighestInAscendingIdOrder) {
  const Choice choice =
      Choose(MakeGate(5, 3, false), {0.1f, 0.4f, 0.05f, 0.15f, 0.3f});
  EXPECT_THAT(choice.ids, ElementsAre(1, 3, 4));
  EXPECT_THAT(choice.weights, ElementsAre(0.4f, 0.15f, 0.3f));
}

TEST(GateTest, RenormalisesWhereTheModelDoes) {
  const Choice choice = Choose(MakeGate(3, 2, true), {0.3f, 0.1f, 0.6f});
  EXPECT_THAT(choice.ids, ElementsAre(0, 2));
  EXPECT_THAT(choice.weights,
              ElementsAre(FloatEq(1.0f / 3), FloatEq(2.0f / 3)));
}

TEST(GateTest, TiesGoToTheLowerId) {
  EXPECT_THAT(Choose(MakeGate(4, 2, false), {0.2f, 0.2f, 0.4f, 0.2f}).ids,
              ElementsAre(0, 2));
  EXPECT_THAT(Choose(MakeGate(4, 3, false), {0.25f, 0.25f, 0.25f, 0.25f}).ids,
              ElementsAre(0, 1, 2));
}

TEST(GateTest, MaskedExpertsAreNotChosen) {
  const Gate gate = MakeGate(4, 2, true);
  const std::vector<float> scores = {0.4f, 0.3f, 0.2f, 0.1f};
  const Choice choice = Choose(gate, scores, {1, 0, 0, 0});
  EXPECT_THAT(choice.ids, ElementsAre(1, 2));
  EXPECT_THAT(choice.weights, ElementsAre(FloatEq(0.6f), FloatEq(0.4f)));
  EXPECT_THAT(Choose(gate, scores, {1, 1, 0, 1}).ids, ElementsAre(2));
  EXPECT_TRUE(Choose(gate, scores, {1, 1, 1, 1}).ids.empty());
}

TEST(GateTest, ScoresOfZeroGiveWeightsOfZero) {
  EXPECT_THAT(
      Choose(MakeGate(3, 2, true), {1.0f, 0.0f, 0.0f}, {1, 0, 0}).weights,
      ElementsAre(0.0f, 0.0f));
}

TEST(GateTest, NanIsChosenLast) {
  EXPECT_THAT(Choose(MakeGate(4, 2, false), {kNan, 0.1f, kNan, 0.2f}).ids,
              ElementsAre(1, 3));
  EXPECT_THAT(Choose(MakeGate(3, 2, false), {kNan, kNan, kNan}).ids,
              ElementsAre(0, 1));
}

TEST(GateTest, AgreesWithTheReference) {
  for (const auto& [num_experts, top_k, norm] :
       {std::tuple(8, 2, true), std::tuple(64, 8, false),
        std::tuple(512, 10, true), std::tuple(1, 1, true)}) {
    const reference::MoeLayer layer = reference::RandomMoeLayer(
        num_experts, top_k, /*hidden_size=*/24, /*intermediate_size=*/1, norm,
        /*seed=*/num_experts);
    const Gate gate = MakeGate(num_experts, top_k, norm);
    std::mt19937 random(3);
    for (int t = 0; t < 20; ++t) {
      std::vector<float> x(24);
      for (float& value : x) {
        value = static_cast<float>(random() % 4001) / 1000.0f - 2.0f;
      }
      const reference::GateResult expected =
          reference::RunGate(layer, x.data());
      std::vector<float> scores(expected.logits.begin(), expected.logits.end());
      gate.Score(scores, absl::MakeSpan(scores));
      const Choice choice = Choose(gate, scores);
      ASSERT_THAT(choice.ids, testing::ElementsAreArray(expected.ids));
      for (int k = 0; k < top_k; ++k) {
        ASSERT_NEAR(choice.weights[k], expected.weights[k], 1e-6);
      }
    }
  }
}

}  // namespace
}  // namespace expertmesh::router
