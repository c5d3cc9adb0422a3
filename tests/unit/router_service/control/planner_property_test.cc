// What holds for every plan, over random problems.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "router_service/control/planner.h"
#include "router_service/control/rebalance_policy.h"
#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

class RandomProblem {
 public:
  explicit RandomProblem(int seed) : generator_(seed) {}

  PlacementProblem Make() {
    const int64_t layers = Integer(1, 5);
    const int64_t experts = Integer(1, 24);
    std::vector<double> rows(layers * experts);
    const double skew = Real() * 3;
    for (double& value : rows) {
      value = Real() < 0.1 ? 0 : std::exp(skew * normal_(generator_));
    }
    PlacementProblem problem = MakeProblem(layers, std::move(rows));
    if (Real() < 0.3) {
      for (int64_t& bytes : problem.slot_bytes) bytes = Integer(1, 4);
    }
    const int64_t hosts = Integer(1, 9);
    const double tightness = 0.8 + 2 * Real();
    for (int64_t h = 0; h < hosts; ++h) AddHost(hosts, tightness, &problem);
    return problem;
  }

  int64_t Integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator_);
  }
  double Real() { return uniform_(generator_); }

 private:
  void AddHost(int64_t hosts, double tightness, PlacementProblem* problem) {
    const std::string id = "host-" + std::to_string(problem->hosts.size());
    PlacementHost host = ManagedHost(id, 0);
    int64_t model = 0;
    for (const int64_t bytes : problem->slot_bytes) {
      model += bytes * problem->num_experts;
    }
    host.managed = Real() < 0.75;
    host.budget_bytes =
        static_cast<int64_t>(static_cast<double>(model) * tightness *
                             (0.5 + Real()) / static_cast<double>(hosts));
    if (Real() < 0.1) host.budget_bytes = 0;
    host.speed = Real() < 0.5 ? 1 : 0.25 + Real();
    const double fill = Real() < 0.3 ? 0 : Real();
    for (int64_t i = 0; i < problem->num_slots(); ++i) {
      if (Real() < fill / 2) host.hosted.push_back(problem->SlotAt(i));
    }
    std::shuffle(host.hosted.begin(), host.hosted.end(), generator_);
    problem->hosts.push_back(host);
  }

  std::mt19937 generator_;
  std::uniform_real_distribution<double> uniform_;
  std::normal_distribution<double> normal_;
};

// Fixed contents apart, enough room for all slots even in the worst order.
bool HasAmpleRoom(const PlacementProblem& problem) {
  int64_t needed = 0;
  int64_t largest = 0;
  for (const int64_t bytes : problem.slot_bytes) {
    needed += bytes * problem.num_experts;
    largest = std::max(largest, bytes);
  }
  int64_t room = 0;
  for (const PlacementHost& host : problem.hosts) {
    if (host.managed) room += std::max<int64_t>(host.budget_bytes - largest, 0);
  }
  return room >= needed;
}

TEST(PlannerPropertyTest, HoldsForRandomProblems) {
  int planned = 0;
  for (int seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomProblem random(seed);
    const PlacementProblem problem = random.Make();
    ASSERT_TRUE(ValidateProblem(problem).ok()) << ValidateProblem(problem);
    const auto plan = PlanPlacement(problem, {});
    if (!plan.ok()) {
      EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_FALSE(HasAmpleRoom(problem)) << plan.status();
      continue;
    }
    ++planned;
    // Covers all, keeps budgets and fixed hosts.
    const absl::Status status = CheckPlacement(problem, plan->hosted);
    EXPECT_TRUE(status.ok()) << status;
    // At every step as well, and so for every prefix that a budget allows.
    EXPECT_EQ(CarryOut(problem, plan->moves), plan->hosted);
    CarryOut(problem, AffordablePrefix(plan->moves,
                                       random.Integer(0, plan->bytes_to_load)));
    // What was valid does not become worse.
    if (CheckPlacement(problem, CurrentContents(problem)).ok()) {
      EXPECT_LE(plan->after.slowest_over_mean,
                plan->before.slowest_over_mean * (1 + 1e-9));
    }
    const auto again = PlanPlacement(problem, {});
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(again->hosted, plan->hosted);
    EXPECT_EQ(MoveTexts(again->moves), MoveTexts(plan->moves));
    if (HasFailure()) return;
  }
  EXPECT_GT(planned, 1000);
}

TEST(PlannerPropertyTest, SettlesDown) {
  for (int seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    PlacementProblem problem = RandomProblem(seed).Make();
    int rounds = 0;
    while (rounds < 20) {
      const auto plan = PlanPlacement(problem, {});
      if (!plan.ok() || plan->moves.empty()) break;
      for (size_t h = 0; h < problem.hosts.size(); ++h) {
        problem.hosts[h].hosted = plan->hosted[h];
      }
      ++rounds;
    }
    EXPECT_LT(rounds, 20);
  }
}

}  // namespace
}  // namespace expertmesh::router
