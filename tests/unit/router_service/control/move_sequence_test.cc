#include "router_service/control/move_sequence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

HostedSlots Target(std::vector<std::vector<int>> experts) {
  HostedSlots hosted;
  for (const auto& list : experts) {
    hosted.emplace_back();
    for (const int expert : list) hosted.back().push_back({0, expert});
  }
  return hosted;
}

// Plans, carries out, and checks that what is promised is reached.
MoveSequence Plan(const PlacementProblem& problem, const HostedSlots& target) {
  const auto sequence = PlanMoves(problem, target);
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  if (!sequence.ok()) return {};
  EXPECT_EQ(CarryOut(problem, sequence->moves), sequence->reached);
  return *sequence;
}

TEST(MoveSequenceTest, NothingToDo) {
  PlacementProblem problem = MakeProblem(1, {1, 1});
  problem.hosts = {ManagedHost("a", 2, {{0, 1}, {0, 0}})};
  const MoveSequence sequence = Plan(problem, Target({{0, 1}}));
  EXPECT_THAT(sequence.moves, IsEmpty());
  EXPECT_EQ(sequence.bytes_to_load, 0);
}

TEST(MoveSequenceTest, LoadsBeforeItUnloadsTheMostDemandedFirst) {
  PlacementProblem problem = MakeProblem(1, {1, 5, 3});
  problem.hosts = {ManagedHost("a", 3, {{0, 0}, {0, 1}, {0, 2}}),
                   ManagedHost("b", 3)};
  const MoveSequence sequence = Plan(problem, Target({{}, {0, 1, 2}}));
  EXPECT_THAT(
      MoveTexts(sequence.moves),
      ElementsAre("+1:0/1", "+1:0/2", "+1:0/0", "-0:0/0", "-0:0/1", "-0:0/2"));
  EXPECT_EQ(sequence.bytes_to_load, 3);
}

TEST(MoveSequenceTest, FullHostMakesRoomWithWhatIsHeldElsewhere) {
  PlacementProblem problem = MakeProblem(1, {1, 5});
  problem.hosts = {ManagedHost("a", 1, {{0, 0}}),
                   FixedHost("base", {{0, 0}, {0, 1}})};
  const MoveSequence sequence = Plan(problem, Target({{1}, {0, 1}}));
  EXPECT_THAT(MoveTexts(sequence.moves), ElementsAre("-0:0/0", "+0:0/1"));
}

TEST(MoveSequenceTest, ChainOfFullHostsBeginsAtTheRoom) {
  // 0 goes a → b, 1 goes b → c; c has room.
  PlacementProblem problem = MakeProblem(1, {9, 1});
  problem.hosts = {ManagedHost("a", 1, {{0, 0}}), ManagedHost("b", 1, {{0, 1}}),
                   ManagedHost("c", 1)};
  const MoveSequence sequence = Plan(problem, Target({{}, {0}, {1}}));
  EXPECT_THAT(MoveTexts(sequence.moves),
              ElementsAre("+2:0/1", "-1:0/1", "+1:0/0", "-0:0/0"));
}

TEST(MoveSequenceTest, ExchangeGoesByWayOfAThirdHost) {
  PlacementProblem problem = MakeProblem(1, {1, 1});
  problem.hosts = {ManagedHost("a", 1, {{0, 0}}), ManagedHost("b", 1, {{0, 1}}),
                   ManagedHost("c", 1)};
  const MoveSequence sequence = Plan(problem, Target({{1}, {0}, {}}));
  EXPECT_EQ(sequence.reached, Target({{1}, {0}, {}}));
  EXPECT_EQ(sequence.bytes_to_load, 3);
}

TEST(MoveSequenceTest, ExchangeOfFullHostsLetsACopyGiveWay) {
  PlacementProblem problem = MakeProblem(1, {1, 1, 1});
  problem.hosts = {ManagedHost("a", 2, {{0, 0}, {0, 2}}),
                   ManagedHost("b", 2, {{0, 1}, {0, 2}})};
  const MoveSequence sequence = Plan(problem, Target({{1, 2}, {0, 2}}));
  EXPECT_EQ(sequence.reached, Target({{1, 2}, {0, 2}}));
  EXPECT_EQ(sequence.bytes_to_load, 3);
}

TEST(MoveSequenceTest, LeavesOutAnExchangeThatHasNoRoomAtAll) {
  PlacementProblem problem = MakeProblem(1, {1, 1, 1});
  problem.hosts = {ManagedHost("a", 1, {{0, 0}}), ManagedHost("b", 1, {{0, 1}}),
                   ManagedHost("c", 1, {{0, 2}})};
  const MoveSequence sequence = Plan(problem, Target({{1}, {0}, {2}}));
  EXPECT_THAT(sequence.moves, IsEmpty());
  EXPECT_EQ(sequence.reached, Target({{0}, {1}, {2}}));
}

TEST(MoveSequenceTest, HostOverItsBudgetThatCannotBeRelieved) {
  // a must give 1 to b, which is full until c takes 2, which is full until a
  // is relieved of 0: all are last copies, and nobody has room.
  PlacementProblem problem = MakeProblem(1, {1, 1, 1, 1});
  problem.hosts = {ManagedHost("a", 1, {{0, 0}, {0, 1}}),
                   ManagedHost("b", 1, {{0, 2}}),
                   ManagedHost("c", 2, {{0, 3}})};
  const auto relieved = PlanMoves(problem, Target({{0}, {1}, {2, 3}}));
  ASSERT_TRUE(relieved.ok()) << relieved.status();
  problem.hosts[2].hosted = {};
  problem.hosts[2].budget_bytes = 0;
  problem.hosts.push_back(ManagedHost("d", 1, {{0, 3}}));
  // Now three slots too many: the target itself is refused.
  const auto refused = PlanMoves(problem, Target({{0}, {1}, {2}, {3}}));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("host c"));
}

TEST(MoveSequenceTest, RefusesTargetsThatUncoverOrChangeFixedHosts) {
  PlacementProblem problem = MakeProblem(1, {1, 1});
  problem.hosts = {ManagedHost("a", 2, {{0, 0}}), FixedHost("f", {{0, 1}})};
  const auto uncovered = PlanMoves(problem, Target({{}, {1}}));
  EXPECT_EQ(uncovered.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(uncovered.status().message()),
              HasSubstr("expert 0 of layer 0"));
  const auto changed = PlanMoves(problem, Target({{0, 1}, {}}));
  EXPECT_EQ(changed.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(changed.status().message()), HasSubstr("host f"));
  EXPECT_EQ(PlanMoves(problem, Target({{0}})).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertmesh::router
