// Gate, plan and combine around the reference's experts, compared with the
// reference's whole layer.

#include "router_service/dispatch/combine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "tests/reference/moe_reference.h"
#include "tests/unit/router_service/dispatch/plan_text.h"

namespace expertmesh::router {
namespace {

struct Layer {
  reference::MoeLayer weights;
  Gate gate;
  int64_t num_tokens;
  std::vector<float> x;  // [num_tokens, hidden_size]

  const float* token(int64_t t) const {
    return x.data() + t * weights.hidden_size;
  }
};

Layer MakeLayer(int num_experts, int top_k, int hidden_size, bool norm,
                int64_t num_tokens) {
  std::mt19937 random(num_experts * 1000 + top_k);
  std::vector<float> x(num_tokens * hidden_size);
  for (float& value : x) {
    value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  }
  return {reference::RandomMoeLayer(num_experts, top_k, hidden_size,
                                    /*intermediate_size=*/12, norm,
                                    /*seed=*/num_experts),
          MakeGate(num_experts, top_k, norm), num_tokens, std::move(x)};
}

Routing Route(const Layer& layer, OverflowPolicy policy) {
  std::vector<std::vector<float>> scores;
  for (int64_t t = 0; t < layer.num_tokens; ++t) {
    const reference::GateResult gate =
        reference::RunGate(layer.weights, layer.token(t));
    std::vector<float> logits(gate.logits.begin(), gate.logits.end());
    layer.gate.Score(logits, absl::MakeSpan(logits));
    scores.push_back(std::move(logits));
  }
  return MakeRouting(layer.gate, scores, std::vector(layer.num_tokens, policy));
}

DispatchPlan BuildPlan(const Layer& layer, const Routing& routing,
                       const CapacityOptions& capacity) {
  DispatchPlanner planner(&layer.gate, capacity);
  DispatchPlan plan;
  planner.Build(routing, {}, &plan);
  return plan;
}

std::vector<float> RunRows(const Layer& layer, const DispatchPlan& plan) {
  std::vector<float> rows;
  for (const RowGroup& group : plan.groups) {
    for (uint32_t row = group.first_row; row < group.last_row; ++row) {
      for (const double value :
           reference::RunExpert(layer.weights, group.expert_id,
                                layer.token(plan.row_token[row]))) {
        rows.push_back(static_cast<float>(value));
      }
    }
  }
  return rows;
}

std::vector<float> CombineF32(const Layer& layer, const DispatchPlan& plan,
                              const std::vector<float>& rows) {
  std::vector<float> y(layer.x.size(), -1.0f);
  Combine(plan, layer.weights.top_k,
          {.rows = reinterpret_cast<const std::byte*>(rows.data())},
          layer.weights.hidden_size, 0, layer.num_tokens, y.data());
  return y;
}

class CombineTest : public testing::TestWithParam<std::tuple<int, int, bool>> {
 protected:
  Layer layer_ = MakeLayer(std::get<0>(GetParam()), std::get<1>(GetParam()),
                           /*hidden_size=*/19, std::get<2>(GetParam()), 33);
};

TEST_P(CombineTest, LayerEqualsTheReference) {
  const DispatchPlan plan = BuildPlan(
      layer_, Route(layer_, OverflowPolicy::kWait), {.capacity_factor = 0});
  const std::vector<float> y = CombineF32(layer_, plan, RunRows(layer_, plan));
  const int hidden = layer_.weights.hidden_size;
  for (int64_t t = 0; t < layer_.num_tokens; ++t) {
    const std::vector<double> expected =
        reference::RunMoe(layer_.weights, layer_.token(t));
    for (int i = 0; i < hidden; ++i) {
      ASSERT_NEAR(y[t * hidden + i], expected[i], 2e-6) << t << ", " << i;
    }
  }
}

TEST_P(CombineTest, WaitingChangesNoBit) {
  const Routing routing = Route(layer_, OverflowPolicy::kWait);
  const DispatchPlan unlimited =
      BuildPlan(layer_, routing, {.capacity_factor = 0});
  const std::vector<float> expected =
      CombineF32(layer_, unlimited, RunRows(layer_, unlimited));
  for (const int64_t capacity : {1, 2, 3, 7, 30}) {
    const DispatchPlan plan = BuildPlan(layer_, routing, CapacityOf(capacity));
    EXPECT_EQ(CombineF32(layer_, plan, RunRows(layer_, plan)), expected)
        << "capacity " << capacity;
  }
}

// In plain loops: what each group of a token adds up to, groups ascending. The
// order of a token's rows is taken from their experts, not from the plan.
using GroupSums = std::map<int, std::vector<float>>;
GroupSums SumsOf(const DispatchPlan& plan, int64_t token, int group_size,
                 const std::vector<float>& rows, int hidden) {
  std::map<int, uint32_t> by_expert;
  for (const RowGroup& group : plan.groups) {
    for (uint32_t row = group.first_row; row < group.last_row; ++row) {
      if (plan.row_token[row] == token) by_expert[group.expert_id] = row;
    }
  }
  GroupSums sums;
  for (const auto& [expert, row] : by_expert) {
    std::vector<float>& sum = sums[expert / group_size];
    sum.resize(hidden);
    for (int i = 0; i < hidden; ++i) {
      const float product = plan.row_weight[row] * rows[row * hidden + i];
      sum[i] += product;
    }
  }
  return sums;
}

TEST_P(CombineTest, GroupsAreAddedUpFirstByWhomever) {
  const int num_experts = layer_.weights.num_experts;
  const int top_k = layer_.weights.top_k;
  const int hidden = layer_.weights.hidden_size;
  for (const auto& [group_size, capacity] :
       {std::pair(1, 99), {2, 99}, {3, 4}, {4, 99}, {5, 1}, {16, 7}}) {
    const DispatchPlan plan = BuildPlan(
        layer_, Route(layer_, OverflowPolicy::kWait), CapacityOf(capacity));
    std::vector<float> rows = RunRows(layer_, plan);
    const int size = std::min(group_size, num_experts);
    CombineGroups groups(size);
    groups.Reset(plan);
    PartialSums sums({.group_size = size,
                      .max_tokens = layer_.num_tokens,
                      .top_k = top_k,
                      .hidden_size = hidden});
    std::vector<float> expected(layer_.x.size());
    std::mt19937 random(size);
    std::vector<uint32_t> replaced;
    for (int64_t t = 0; t < layer_.num_tokens; ++t) {
      const int32_t* const token_rows = &plan.token_rows[t * top_k];
      int64_t place = 0;
      for (const auto& [group, sum] : SumsOf(plan, t, size, rows, hidden)) {
        for (int i = 0; i < hidden; ++i) expected[t * hidden + i] += sum[i];
        const int64_t end = groups.EndOfGroup(token_rows, top_k, place);
        if (sums.IsSmaller(end - place) && random() % 2 == 0) {
          const uint32_t slot = sums.Slot(t, place);
          std::memcpy(sums.data(slot), sum.data(), hidden * sizeof(float));
          sums.SetHere(slot, 0);
          replaced.insert(replaced.end(), token_rows + place, token_rows + end);
        }
        place = end;
      }
    }
    const auto combine = [&](const PartialSums* with) {
      std::vector<float> y(layer_.x.size(), -1.0f);
      Combine(plan, top_k,
              {.rows = reinterpret_cast<const std::byte*>(rows.data()),
               .groups = &groups,
               .sums = with},
              hidden, 0, layer_.num_tokens, y.data());
      return y;
    };
    EXPECT_EQ(combine(nullptr), expected) << "groups of " << size;
    for (const uint32_t row : replaced) {
      std::fill_n(&rows[row * hidden], hidden, std::nanf(""));
    }
    EXPECT_EQ(combine(&sums), expected) << "groups of " << size;
    EXPECT_EQ(replaced.empty(), size == 1 || top_k == 1);
  }
}

TEST_P(CombineTest, GroupsOfOneAndOfAllGiveTheSameBits) {
  const DispatchPlan plan = BuildPlan(
      layer_, Route(layer_, OverflowPolicy::kWait), {.capacity_factor = 0});
  const std::vector<float> rows = RunRows(layer_, plan);
  CombineGroups all(layer_.weights.num_experts);
  all.Reset(plan);
  std::vector<float> y(layer_.x.size());
  Combine(
      plan, layer_.weights.top_k,
      {.rows = reinterpret_cast<const std::byte*>(rows.data()), .groups = &all},
      layer_.weights.hidden_size, 0, layer_.num_tokens, y.data());
  EXPECT_EQ(y, CombineF32(layer_, plan, rows));
}

// More columns than are added up at a time, and a tail.
TEST(CombineOrderTest, GroupsOfWideRows) {
  constexpr int64_t kHidden = 2 * 1024 + 7;
  const Gate gate = MakeGate(6, 5);
  const Routing routing =
      MakeRouting(gate, {{3, 1, 2, 5, 4, 6}}, {OverflowPolicy::kWait});
  DispatchPlanner planner(&gate, {.capacity_factor = 0});
  DispatchPlan plan;
  planner.Build(routing, {}, &plan);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> rows(5 * kHidden);
  for (float& value : rows) value = normal(random);
  CombineGroups groups(3);
  groups.Reset(plan);
  std::vector<float> y(kHidden), expected(kHidden);
  for (const auto& [group, sum] : SumsOf(plan, 0, 3, rows, kHidden)) {
    for (int64_t i = 0; i < kHidden; ++i) expected[i] += sum[i];
  }
  Combine(plan, 5,
          {.rows = reinterpret_cast<const std::byte*>(rows.data()),
           .groups = &groups},
          kHidden, 0, 1, y.data());
  EXPECT_EQ(y, expected);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CombineTest,
                         testing::Values(std::tuple(1, 1, true),
                                         std::tuple(4, 2, true),
                                         std::tuple(8, 2, false),
                                         std::tuple(16, 8, true),
                                         std::tuple(5, 5, false)));

TEST(CombineOrderTest, AddsByAscendingExpertWhateverTheWave) {
  // In f32 (1e8 + 1) − 1e8 is 0, while (−1e8 + 1e8) + 1 is 1.
  const Gate gate = MakeGate(3, 3);
  const Routing routing =
      MakeRouting(gate, {{1.0f, 1.0f, 2.0f}, {2.0f, 2.0f, 0.5f}},
                  std::vector(2, OverflowPolicy::kWait));
  DispatchPlanner planner(&gate, CapacityOf(1));
  DispatchPlan plan;
  planner.Build(routing, {}, &plan);
  // Expert 2 answers token 0 a wave before experts 0 and 1.
  ASSERT_EQ(WavesText(plan), "e0:1 e1:1 e2:0 / e0:0 e1:0 e2:1");
  const std::vector<float> rows = {0, 0, -0.5e8f, 1e8f, 1, 0};
  std::vector<float> y(2);
  Combine(plan, 3, {.rows = reinterpret_cast<const std::byte*>(rows.data())}, 1,
          0, 2, y.data());
  EXPECT_EQ(y[0], 0.0f);
}

TEST(CombineOrderTest, ReadsEveryTypeAndOnlyItsTokens) {
  const Gate gate = MakeGate(2, 1);
  const Routing routing = MakeRouting(gate, {{0.25f, 0.0f}, {0.0f, 0.5f}},
                                      std::vector(2, OverflowPolicy::kWait));
  DispatchPlanner planner(&gate, {.capacity_factor = 0});
  DispatchPlan plan;
  planner.Build(routing, {}, &plan);
  const std::vector<float> f32 = {2.0f, 3.0f};
  const std::vector<BF16> bf16 = {ToBF16(2.0f), ToBF16(3.0f)};
  const std::vector<uint16_t> f16 = {0x4000, 0x4200};
  // 0.5 · 4 and 0.25 · 12; a row is as long as its scale and a byte.
  std::vector<std::byte> int8(10);
  const float scales[] = {0.5f, 0.25f};
  std::memcpy(&int8[0], &scales[0], 4);
  int8[4] = std::byte{4};
  std::memcpy(&int8[5], &scales[1], 4);
  int8[9] = std::byte{12};
  for (const auto& [dtype, rows] :
       {std::pair<DType, const void*>(DType::kF32, f32.data()),
        std::pair<DType, const void*>(DType::kBF16, bf16.data()),
        std::pair<DType, const void*>(DType::kF16, f16.data()),
        std::pair<DType, const void*>(DType::kInt8, int8.data())}) {
    std::vector<float> y = {-1.0f, -1.0f};
    const ExpertOutputs outputs = {dtype, static_cast<const std::byte*>(rows)};
    Combine(plan, 1, outputs, 1, 0, 2, y.data());
    EXPECT_EQ(y, std::vector<float>({0.5f, 1.5f})) << DTypeName(dtype);
    y = {-1.0f, -1.0f};
    Combine(plan, 1, outputs, 1, 1, 2, y.data());
    EXPECT_EQ(y, std::vector<float>({-1.0f, 1.5f})) << DTypeName(dtype);
  }
}

TEST(CombineOrderTest, ATokenNobodyServesGetsZero) {
  const Gate gate = MakeGate(1, 1);
  const Routing routing = MakeRouting(gate, {{0.5f}, {0.9f}},
                                      std::vector(2, OverflowPolicy::kDrop));
  DispatchPlanner planner(&gate, CapacityOf(1));
  DispatchPlan plan;
  planner.Build(routing, {}, &plan);
  const float row = 2.0f;
  std::vector<float> y = {-1.0f, -1.0f};
  Combine(plan, 1, {.rows = reinterpret_cast<const std::byte*>(&row)}, 1, 0, 2,
          y.data());
  EXPECT_EQ(y, std::vector<float>({0.0f, 1.8f}));
}

}  // namespace
}  // namespace expertmesh::router
