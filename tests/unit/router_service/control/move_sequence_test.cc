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

TEST(MoveSequenceTest, RelievesAHostOverItsBudget) {
  // a gives 1 to b, which is full until c has taken 2.
  PlacementProblem problem = MakeProblem(1, {1, 1, 1, 1});
  problem.hosts = {ManagedHost("a", 1, {{0, 0}, {0, 1}}),
                   ManagedHost("b", 1, {{0, 2}}),
                   ManagedHost("c", 2, {{0, 3}})};
  const MoveSequence sequence = Plan(problem, Target({{0}, {1}, {2, 3}}));
  EXPECT_EQ(sequence.reached, Target({{0}, {1}, {2, 3}}));
}

TEST(MoveSequenceTest, SaysWhichHostCannotBeRelieved) {
  // a, one over, is to give 0 and 1 for the large slot of b; b is full until
  // that is gone, and a has no room for it before.
  PlacementProblem problem = MakeProblem(2, {1, 1, 1, 0});
  problem.slot_bytes = {2, 3};
  problem.hosts = {ManagedHost("a", 3, {{0, 0}, {0, 1}}),
                   ManagedHost("b", 4, {{1, 0}}), FixedHost("base", {{1, 1}})};
  const auto sequence =
      PlanMoves(problem, {{{1, 0}}, {{0, 0}, {0, 1}}, {{1, 1}}});
  EXPECT_EQ(sequence.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(sequence.status().message()),
              HasSubstr("host a exceeds its budget"));
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
