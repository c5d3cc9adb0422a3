#include "router_service/control/urgent_moves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

// One layer of four experts, of which a fixed host holds the last two.
PlacementProblem FourExperts() {
  PlacementProblem problem = MakeProblem(1, {100, 1, 50, 1});
  problem.hosts = {FixedHost("fixed", {{0, 2}, {0, 3}})};
  return problem;
}

TEST(UrgentMovesTest, LoadOneCopyOfWhatNobodyHolds) {
  PlacementProblem problem = FourExperts();
  problem.hosts.push_back(ManagedHost("m", 3));
  problem.hosts.push_back(ManagedHost("n", 3, {{0, 3}}));
  const auto moves = UrgentMoves(
      problem, {{{0, 2}, {0, 3}}, {{0, 0}, {0, 2}}, {{0, 0}, {0, 1}, {0, 2}}});
  ASSERT_TRUE(moves.ok()) << moves.status();
  EXPECT_THAT(MoveTexts(*moves), UnorderedElementsAre("+1:0/0", "+2:0/1"));
}

TEST(UrgentMovesTest, UnloadOnlyToMakeRoom) {
  PlacementProblem problem = FourExperts();
  problem.hosts.push_back(ManagedHost("m", 2, {{0, 2}, {0, 3}}));
  problem.hosts.push_back(ManagedHost("n", 2, {{0, 1}, {0, 3}}));
  const auto moves = UrgentMoves(
      problem, {{{0, 2}, {0, 3}}, {{0, 0}, {0, 2}}, {{0, 1}, {0, 2}}});
  ASSERT_TRUE(moves.ok()) << moves.status();
  EXPECT_THAT(MoveTexts(*moves), ElementsAre("-1:0/3", "+1:0/0"));
  CarryOut(problem, *moves);
}

TEST(UrgentMovesTest, TakeFromAHostWhatItHasNoRoomFor) {
  PlacementProblem problem = FourExperts();
  problem.hosts.push_back(ManagedHost("m", 2, {{0, 0}, {0, 1}, {0, 2}}));
  problem.hosts.push_back(ManagedHost("n", 2));
  const auto moves = UrgentMoves(
      problem, {{{0, 2}, {0, 3}}, {{0, 0}, {0, 1}}, {{0, 0}, {0, 2}}});
  ASSERT_TRUE(moves.ok()) << moves.status();
  EXPECT_THAT(MoveTexts(*moves), ElementsAre("-1:0/2"));
}

TEST(UrgentMovesTest, SayWhenOnlyTheWholePlanWillDo) {
  PlacementProblem problem = FourExperts();
  problem.hosts.push_back(ManagedHost("m", 1, {{0, 0}}));
  problem.hosts.push_back(ManagedHost("n", 1));
  EXPECT_EQ(UrgentMoves(problem, {{{0, 2}, {0, 3}}, {{0, 1}}, {{0, 0}}})
                .status()
                .code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace expertmesh::router
