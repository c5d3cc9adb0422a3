// The planner beside the published balancer, and beside placing by number.

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "router_service/control/planner.h"
#include "tests/reference/eplb_reference.h"
#include "tests/support/expert_loads.h"
#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

// Of the slowest host over the mean, summed over layers.
double EplbSlowestOverMean(const PlacementProblem& problem,
                           reference::EplbShape shape) {
  double slowest = 0;
  double mean = 0;
  for (int64_t layer = 0; layer < problem.num_layers; ++layer) {
    const auto first = problem.rows.begin() + layer * problem.num_experts;
    const std::vector<double> rows(first, first + problem.num_experts);
    const std::vector<double> hosts =
        reference::EplbHostRows(rows, reference::EplbPlacement(rows, shape));
    slowest += *std::max_element(hosts.begin(), hosts.end());
    mean += std::accumulate(hosts.begin(), hosts.end(), 0.0) /
            static_cast<double>(hosts.size());
  }
  return slowest / mean;
}

void ExpectAsGoodAsEplb(const PlacementProblem& problem, int slots) {
  const auto plan = PlanPlacement(problem, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const int num_hosts = static_cast<int>(problem.hosts.size());
  const double eplb = EplbSlowestOverMean(
      problem, {.num_physical = slots, .num_hosts = num_hosts});
  const double contiguous =
      EvaluatePlacement(problem, ContiguousPlacement(problem, slots))
          .slowest_over_mean;
  EXPECT_LE(plan->after.slowest_over_mean, eplb * 1.01);
  EXPECT_LE(plan->after.slowest_over_mean, contiguous * 1.001);
  EXPECT_EQ(CarryOut(problem, plan->moves), plan->hosted);
}

TEST(EplbReferenceTest, ReplicatesAndPacksAsPublished) {
  // The heaviest expert is replicated, and its halves go to different hosts.
  const std::vector<double> rows = {90, 40, 30, 20, 10, 5};
  const auto hosts =
      reference::EplbPlacement(rows, {.num_physical = 8, .num_hosts = 4});
  const std::vector<double> loads = reference::EplbHostRows(rows, hosts);
  EXPECT_EQ(std::accumulate(loads.begin(), loads.end(), 0.0), 195);
  for (const auto& experts : hosts) EXPECT_EQ(experts.size(), 2u);
  // 90 → 45, 45 → 30, 30, 30: replicas 30 30 30 40 30 20 10 5 (4 hosts).
  EXPECT_EQ(*std::max_element(loads.begin(), loads.end()), 60);
}

TEST(EplbReferenceTest, HierarchyKeepsGroupsOnTheirNode) {
  std::vector<double> rows(16);
  for (int e = 0; e < 16; ++e) rows[e] = e + 1;
  const auto hosts = reference::EplbPlacement(
      rows,
      {.num_physical = 24, .num_groups = 4, .num_nodes = 2, .num_hosts = 4});
  ASSERT_EQ(hosts.size(), 4u);
  std::vector<int> node_of_group(4, -1);
  for (size_t h = 0; h < hosts.size(); ++h) {
    EXPECT_EQ(hosts[h].size(), 6u);
    const int node = static_cast<int>(h / 2);
    for (const int expert : hosts[h]) {
      int& known = node_of_group[expert / 4];
      EXPECT_TRUE(known == -1 || known == node);
      known = node;
    }
  }
}

TEST(PlannerBaselineTest, SyntheticLoads) {
  for (const LoadKind kind : kLoadKinds) {
    for (const int num_hosts : {4, 16, 32, 64}) {
      SCOPED_TRACE(LoadKindName(kind) + " " + std::to_string(num_hosts));
      ExpectAsGoodAsEplb(
          EqualHosts(SyntheticLoad(kind, 8, 256), 8, num_hosts, 320), 320);
    }
  }
}

TEST(PlannerBaselineTest, RecordedLoads) {
  for (const char* text : {"play", "novel", "speech", "programs", "chat"}) {
    const std::vector<double> rows = RecordedLoad(text);
    ASSERT_EQ(rows.size(), 64u) << text;
    for (const auto& [num_hosts, slots] : std::vector<std::pair<int, int>>{
             {2, 16}, {4, 16}, {8, 16}, {4, 20}, {5, 20}, {8, 24}, {8, 32}}) {
      SCOPED_TRACE(text + std::string(" on ") + std::to_string(num_hosts) +
                   " hosts, slots " + std::to_string(slots));
      ExpectAsGoodAsEplb(EqualHosts(rows, 4, num_hosts, slots), slots);
    }
  }
}

// Four fixed hosts that cover everything, and a managed one with a quarter as
// many slots: the best there is, by trying every choice of sixteen slots, and
// the plan beside it.
TEST(PlannerBaselineTest, SmallHotPoolEvensOutRecordedLoads) {
  for (const auto& [text, best] :
       std::vector<std::pair<std::string, double>>{{"play", 1.2493},
                                                   {"novel", 1.3070},
                                                   {"speech", 1.3291},
                                                   {"programs", 1.2429},
                                                   {"chat", 1.2121}}) {
    PlacementProblem problem = EqualHosts(RecordedLoad(text), 4, 4, 16);
    const HostedSlots base = ContiguousPlacement(problem, 16);
    for (int h = 0; h < 4; ++h) {
      problem.hosts[h].managed = false;
      problem.hosts[h].hosted = base[h];
    }
    problem.hosts.push_back(problem.hosts[0]);
    problem.hosts.back().managed = true;
    problem.hosts.back().hosted = {};
    const auto plan = PlanPlacement(problem, {});
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->after.slowest_over_mean, best * 1.05) << text;
    EXPECT_GE(plan->after.slowest_over_mean, best - 1e-4) << text;
    EXPECT_GT(plan->before.slowest_over_mean, 1.85) << text;
  }
}

}  // namespace
}  // namespace expertmesh::router
