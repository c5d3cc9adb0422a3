// Random routings: plans are compared with the rule of dispatch_plan.h written
// as plainly as possible, and checked for what every plan must satisfy.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "router_service/dispatch/dispatch_plan.h"
#include "tests/support/allocation_counter.h"
#include "tests/unit/router_service/dispatch/plan_text.h"

namespace expertmesh::router {
namespace {

struct Shape {
  int64_t num_tokens, num_experts, top_k, capacity;
};

// Few distinct scores, so that ties are common; skewed to low experts, so that
// overflow is.
Routing RandomRouting(const Gate& gate, int64_t num_tokens,
                      std::mt19937& random) {
  std::vector<std::vector<float>> scores(num_tokens);
  std::vector<OverflowPolicy> policy(num_tokens);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t e = 0; e < gate.num_experts(); ++e) {
      const auto skew = static_cast<float>(gate.num_experts() - e);
      scores[t].push_back(static_cast<float>(random() % 16) * skew / 256.0f);
    }
    policy[t] = static_cast<OverflowPolicy>(random() % 3);
  }
  return MakeRouting(gate, scores, policy);
}

// (wave, expert, token) of every row, and each row's weight.
using PlainPlan = std::map<std::tuple<int64_t, int32_t, int64_t>, float>;

bool IsCovered(const std::set<int32_t>& experts,
               const std::vector<uint16_t>& replicas) {
  return std::all_of(experts.begin(), experts.end(),
                     [&](int32_t e) { return replicas[e] > 0; });
}

// Tokens that lost rows, in the order in which they decide about them.
std::vector<int64_t> InTurn(const Routing& r,
                            const std::vector<std::set<int32_t>>& lost,
                            const std::vector<uint16_t>& replicas) {
  std::set<std::tuple<bool, double, int64_t>> tokens;
  for (int64_t t = 0; t < r.num_tokens; ++t) {
    double stake = 0;
    for (const int32_t e : lost[t]) stake += r.scores[t * r.num_experts + e];
    if (lost[t].empty()) continue;
    tokens.emplace(IsCovered(lost[t], replicas), stake, t);
  }
  std::vector<int64_t> order;
  for (const auto& [covered, stake, t] : tokens) order.push_back(t);
  return order;
}

PlainPlan PlainBuild(const Gate& gate, const Routing& r, int64_t capacity,
                     const std::vector<uint16_t>& replicas) {
  const auto room = [&](int32_t e) { return capacity * replicas[e]; };
  const auto score = [&r](int64_t t, int32_t e) {
    return r.scores[t * r.num_experts + e];
  };
  const auto rank = [&](std::vector<int64_t>& tokens, int32_t e) {
    std::sort(tokens.begin(), tokens.end(), [&](int64_t a, int64_t b) {
      return std::make_tuple(-score(a, e), a) <
             std::make_tuple(-score(b, e), b);
    });
  };
  std::vector<std::set<int64_t>> held(r.num_experts);
  std::vector<std::vector<int64_t>> waiting(r.num_experts);
  std::map<std::pair<int64_t, int32_t>, float> weight;
  std::vector<std::set<int32_t>> lost(r.num_tokens);
  std::vector<std::vector<int64_t>> wanting(r.num_experts);
  for (int64_t i = 0; i < r.num_tokens * r.top_k; ++i) {
    wanting[r.topk_ids[i]].push_back(i / r.top_k);
    weight[{i / r.top_k, r.topk_ids[i]}] = r.topk_weights[i];
  }
  for (int32_t e = 0; e < r.num_experts; ++e) {
    rank(wanting[e], e);
    for (size_t i = 0; i < wanting[e].size(); ++i) {
      if (static_cast<int64_t>(i) < room(e)) {
        held[e].insert(wanting[e][i]);
      } else {
        lost[wanting[e][i]].insert(e);
      }
    }
  }
  double allowance = r.allowance.mass;
  for (int64_t i = 0; i < r.num_tokens * r.top_k; ++i) {
    allowance += r.allowance.share * score(i / r.top_k, r.topk_ids[i]);
  }
  const auto spend = [&](double loss, bool is_covered) {
    if (is_covered && (allowance <= 0 || loss > allowance)) return false;
    allowance -= loss;
    return true;
  };
  for (const int64_t t : InTurn(r, lost, replicas)) {
    if (r.policy[t] == OverflowPolicy::kDrop) {
      std::erase_if(lost[t], [&](int32_t e) {
        return spend(score(t, e), replicas[e] > 0);
      });
    }
    if (r.policy[t] == OverflowPolicy::kNextBest) {
      std::vector<uint8_t> masked(r.num_experts);
      for (int32_t e = 0; e < r.num_experts; ++e) {
        masked[e] = static_cast<int64_t>(held[e].size()) >= room(e) &&
                    held[e].count(t) == 0;
      }
      std::vector<int32_t> ids(r.top_k);
      std::vector<float> weights(r.top_k);
      const absl::Span<const float> scores = r.scores;
      const int64_t found =
          gate.Choose(scores.subspan(t * r.num_experts, r.num_experts), masked,
                      absl::MakeSpan(ids), absl::MakeSpan(weights));
      double loss = 0;
      for (int64_t k = 0; k < r.top_k; ++k) {
        loss += static_cast<double>(score(t, r.topk_ids[t * r.top_k + k])) -
                score(t, ids[k]);
      }
      if (found == r.top_k && spend(loss, IsCovered(lost[t], replicas))) {
        for (auto& tokens : held) tokens.erase(t);
        for (int64_t k = 0; k < r.top_k; ++k) {
          held[ids[k]].insert(t);
          weight[{t, ids[k]}] = weights[k];
        }
        continue;
      }
    }
    for (const int32_t e : lost[t]) waiting[e].push_back(t);
  }
  PlainPlan plan;
  for (int32_t e = 0; e < r.num_experts; ++e) {
    for (const int64_t t : held[e]) plan[{0, e, t}] = weight[{t, e}];
    rank(waiting[e], e);
    for (size_t i = 0; i < waiting[e].size(); ++i) {
      const int64_t wave =
          (held[e].size() + i) / (room(e) > 0 ? room(e) : capacity);
      plan[{wave, e, waiting[e][i]}] = weight[{waiting[e][i], e}];
    }
  }
  return plan;
}

PlainPlan Flatten(const DispatchPlan& plan) {
  PlainPlan plain;
  for (int64_t wave = 0; wave < plan.num_waves(); ++wave) {
    for (uint32_t g = plan.wave_groups[wave]; g < plan.wave_groups[wave + 1];
         ++g) {
      const RowGroup& group = plan.groups[g];
      for (uint32_t row = group.first_row; row < group.last_row; ++row) {
        plain[{wave, group.expert_id, plan.row_token[row]}] =
            plan.row_weight[row];
      }
    }
  }
  return plain;
}

// No more is lost than may be, save for rows that nobody serves.
void CheckAllowance(const Routing& routing, const DispatchPlan& plan,
                    const std::vector<uint16_t>& replicas) {
  RoutingAccount total;
  for (const RoutingAccount& account : plan.accounts) total.Add(account);
  if (std::count(replicas.begin(), replicas.end(), 0) > 0) return;
  const double allowed =
      routing.allowance.mass + routing.allowance.share * total.original_mass;
  ASSERT_LE(total.original_mass - total.kept_mass, std::max(allowed, 0.0));
}

// What holds for every plan, whatever the rule.
void CheckInvariants(const Routing& routing, const DispatchPlan& plan,
                     int64_t capacity) {
  int64_t next_row = 0;
  for (const RowGroup& group : plan.groups) {
    ASSERT_EQ(group.first_row, next_row);
    ASSERT_GT(group.last_row, group.first_row);
    ASSERT_LE(group.last_row - group.first_row, capacity);
    next_row = group.last_row;
  }
  ASSERT_EQ(next_row, plan.num_rows());
  ASSERT_EQ(plan.wave_groups.back(), plan.groups.size());

  // Every row belongs to exactly one place of its own token, and places are by
  // ascending expert.
  std::set<int32_t> seen;
  RoutingAccount total;
  for (int64_t t = 0; t < routing.num_tokens; ++t) {
    int64_t served = 0;
    for (int64_t k = 0; k < routing.top_k; ++k) {
      const int32_t row = plan.token_rows[t * routing.top_k + k];
      if (row < 0) continue;
      ASSERT_EQ(k, served++) << "padding before a row";
      ASSERT_TRUE(seen.insert(row).second);
      ASSERT_EQ(plan.row_token[row], t);
    }
    const RoutingAccount& account = plan.accounts[t];
    ASSERT_EQ(served + account[RowOutcome::kDropped], routing.top_k);
    if (routing.policy[t] == OverflowPolicy::kWait) {
      ASSERT_EQ(account.kept_mass, account.original_mass);
    }
    ASSERT_LE(account.kept_mass, account.original_mass + 1e-9);
    total.Add(account);
  }
  ASSERT_EQ(static_cast<int64_t>(seen.size()), plan.num_rows());
  int64_t assignments = 0;
  for (const uint32_t rows : total.rows) assignments += rows;
  ASSERT_EQ(assignments, routing.num_tokens * routing.top_k);
}

TEST(DispatchPlanPropertyTest, PlansFollowThePlainRule) {
  std::mt19937 random(20240917);
  for (int trial = 0; trial < 600; ++trial) {
    const int64_t num_experts = 1 + random() % 12;
    const Shape shape = {.num_tokens = static_cast<int64_t>(random() % 40),
                         .num_experts = num_experts,
                         .top_k = 1 + static_cast<int64_t>(random()) %
                                          std::min<int64_t>(num_experts, 4),
                         .capacity = 1 + static_cast<int64_t>(random() % 8)};
    SCOPED_TRACE(testing::Message()
                 << "trial " << trial << ": " << shape.num_tokens << " tokens, "
                 << shape.num_experts << " experts, top " << shape.top_k
                 << ", capacity " << shape.capacity);
    const Gate gate =
        MakeGate(shape.num_experts, shape.top_k, /*norm=*/trial % 2 == 0);
    Routing routing = RandomRouting(gate, shape.num_tokens, random);
    // Sums of sixteenths are exact in any order.
    if (trial % 4 > 0) {
      routing.allowance = {.mass = static_cast<double>(random() % 8) - 1,
                           .share = static_cast<double>(random() % 3) / 16};
    }
    DispatchPlanner planner(&gate, CapacityOf(shape.capacity));
    DispatchPlan plan;
    std::vector<uint16_t> replicas(shape.num_experts, 1);
    if (trial % 3 > 0) {
      for (uint16_t& count : replicas) count = random() % 4;
    }
    planner.Build(routing, replicas, &plan);
    ASSERT_NO_FATAL_FAILURE(CheckInvariants(
        routing, plan,
        shape.capacity *
            std::max<int64_t>(
                1, *std::max_element(replicas.begin(), replicas.end()))));
    ASSERT_NO_FATAL_FAILURE(CheckAllowance(routing, plan, replicas));
    ASSERT_EQ(Flatten(plan),
              PlainBuild(gate, routing, shape.capacity, replicas));
    ASSERT_EQ(Flatten(plan).size(), plan.row_token.size());
  }
}

TEST(DispatchPlanPropertyTest, APlannerCarriesNothingFromPlanToPlan) {
  std::mt19937 random(7);
  const Gate gate = MakeGate(8, 2);
  DispatchPlanner reused(&gate, CapacityOf(3));
  DispatchPlan plan;
  for (const int64_t num_tokens : {40, 3, 0, 17, 40}) {
    const Routing routing = RandomRouting(gate, num_tokens, random);
    reused.Build(routing, {}, &plan);
    DispatchPlanner fresh(&gate, CapacityOf(3));
    DispatchPlan expected;
    fresh.Build(routing, {}, &expected);
    EXPECT_EQ(WavesText(plan), WavesText(expected));
    EXPECT_EQ(OutcomesText(plan), OutcomesText(expected));
    EXPECT_EQ(plan.token_rows, expected.token_rows);
    EXPECT_EQ(plan.row_weight, expected.row_weight);
  }
}

TEST(DispatchPlanPropertyTest, ASteadyStepAllocatesNothing) {
  std::mt19937 random(11);
  const Gate gate = MakeGate(256, 8);
  const Routing routing = RandomRouting(gate, 512, random);
  DispatchPlanner planner(&gate, CapacityOf(16));
  DispatchPlan plan;
  planner.Build(routing, {}, &plan);
  ASSERT_GT(plan.overflow_rows, 0);
  ASSERT_GT(plan.num_waves(), 1);
  const int64_t before = NumAllocations();
  for (int i = 0; i < 3; ++i) planner.Build(routing, {}, &plan);
  EXPECT_EQ(NumAllocations(), before);
}

}  // namespace
}  // namespace expertmesh::router
