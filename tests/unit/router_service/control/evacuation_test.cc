#include "router_service/control/evacuation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>

#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Evacuate(const PlacementProblem& problem, int host) {
  const auto sequence = PlanEvacuation(problem, host);
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  return sequence.ok() ? MoveTexts(sequence->moves)
                       : std::vector<std::string>();
}

TEST(EvacuationTest, LoadsOnlyWhatTheHostAloneHolds) {
  PlacementProblem problem = MakeProblem(1, {5, 10, 20, 30});
  problem.hosts = {FixedHost("base", {{0, 0}, {0, 1}}),
                   ManagedHost("leaving", 4, {{0, 1}, {0, 2}, {0, 3}}),
                   ManagedHost("other", 4)};
  EXPECT_THAT(Evacuate(problem, 1), ElementsAre("+2:0/3", "+2:0/2"));
  EXPECT_THAT(Evacuate(problem, 0), ElementsAre("+2:0/0"));
  EXPECT_THAT(Evacuate(problem, 2), ElementsAre());
}

TEST(EvacuationTest, PrefersTheHostThatIsLeastBusyInTheLayer) {
  PlacementProblem problem = MakeProblem(2, {10, 20, 5, 1});
  problem.hosts = {FixedHost("leaving", {{0, 0}, {0, 1}, {1, 0}, {1, 1}}),
                   ManagedHost("a", 3, {{0, 0}}),
                   ManagedHost("b", 3, {{1, 0}})};
  EXPECT_THAT(Evacuate(problem, 0), ElementsAre("+2:0/1", "+1:1/1"));
  // Ten times as fast: still the idler one.
  problem.hosts[1].speed = 10;
  EXPECT_THAT(Evacuate(problem, 0), ElementsAre("+2:0/1", "+1:1/1"));
}

TEST(EvacuationTest, TheCopyThatIsMissedLeastGivesWay) {
  PlacementProblem problem = MakeProblem(1, {10, 20, 30});
  problem.hosts = {FixedHost("base", {{0, 0}, {0, 1}}),
                   ManagedHost("leaving", 1, {{0, 2}}),
                   ManagedHost("full", 2, {{0, 0}, {0, 1}})};
  EXPECT_THAT(Evacuate(problem, 1), ElementsAre("-2:0/0", "+2:0/2"));
}

// Its own copies are none when it is gone.
TEST(EvacuationTest, TheLastCopyThatStaysDoesNotGiveWay) {
  PlacementProblem problem = MakeProblem(1, {10, 20, 30});
  problem.hosts = {FixedHost("base", {{0, 0}}),
                   ManagedHost("leaving", 2, {{0, 1}, {0, 2}}),
                   ManagedHost("full", 1, {{0, 1}})};
  const auto sequence = PlanEvacuation(problem, 1);
  EXPECT_EQ(sequence.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(sequence.status().message()),
              HasSubstr("room for expert 2 of layer 0, which leaving alone"));
}

// Whatever the mesh: afterwards the others cover all, and no step uncovers any.
TEST(EvacuationTest, LeavesEverySlotToOthers) {
  int planned = 0;
  for (int seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % n); };
    constexpr int kLayers = 2;
    constexpr int kExperts = 6;
    std::vector<double> rows(kLayers * kExperts);
    for (double& r : rows) r = below(100);
    PlacementProblem problem = MakeProblem(kLayers, rows);
    for (int host = 0; host < 4; ++host) {
      std::set<SlotId> held;
      for (int i = below(9); i > 0; --i) {
        held.insert({below(kLayers), below(kExperts)});
      }
      std::vector<SlotId> slots(held.begin(), held.end());
      const auto budget = static_cast<int64_t>(slots.size()) + below(4);
      problem.hosts.push_back(ManagedHost(std::to_string(host), budget, slots));
    }
    std::set<SlotId> missing;
    for (int i = 0; i < kLayers * kExperts; ++i) {
      missing.insert(problem.SlotAt(i));
    }
    for (const PlacementHost& host : problem.hosts) {
      for (const SlotId slot : host.hosted) missing.erase(slot);
    }
    problem.hosts.push_back(
        FixedHost("base", {missing.begin(), missing.end()}));
    const int leaving = below(5);
    const auto sequence = PlanEvacuation(problem, leaving);
    if (!sequence.ok()) continue;
    ++planned;
    const HostedSlots reached = CarryOut(problem, sequence->moves);
    EXPECT_EQ(reached[leaving], CurrentContents(problem)[leaving]);
    std::set<SlotId> staying;
    for (int host = 0; host < 5; ++host) {
      if (host == leaving) continue;
      staying.insert(reached[host].begin(), reached[host].end());
    }
    EXPECT_EQ(staying.size(), kLayers * kExperts) << "seed " << seed;
  }
  EXPECT_GT(planned, 100);
}

}  // namespace
}  // namespace expertmesh::router
