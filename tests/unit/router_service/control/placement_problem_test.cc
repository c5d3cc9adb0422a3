#include "router_service/control/placement_problem.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "tests/unit/router_service/control/problem_builder.h"

namespace expertmesh::router {
namespace {

using ::testing::HasSubstr;

PlacementProblem Valid() {
  PlacementProblem problem = MakeProblem(2, {1, 2, 3, 4});
  problem.hosts = {ManagedHost("a", 4, {{0, 0}, {0, 1}, {1, 0}}),
                   FixedHost("b", {{1, 1}})};
  return problem;
}

TEST(PlacementProblemTest, RejectsWhatCannotBe) {
  EXPECT_TRUE(ValidateProblem(Valid()).ok());
  const std::function<void(PlacementProblem*)> faults[] = {
      [](auto* p) { p->num_layers = 0; },
      [](auto* p) { p->num_layers = int64_t{1} << 40; },
      [](auto* p) { p->rows.pop_back(); },
      [](auto* p) { p->rows[0] = -1; },
      [](auto* p) { p->rows[0] = std::numeric_limits<double>::quiet_NaN(); },
      [](auto* p) { p->slot_bytes.push_back(1); },
      [](auto* p) {
        p->slot_bytes = {0, 0};
      },
      [](auto* p) { p->slot_bytes[1] = -1; },
      [](auto* p) { p->hosts.clear(); },
      [](auto* p) { p->hosts[0].speed = 0; },
      [](auto* p) { p->hosts[0].pool_weight = -1; },
      [](auto* p) { p->hosts[0].budget_bytes = -1; },
      [](auto* p) {
        p->hosts[0].hosted.push_back({0, 0});
      },
      [](auto* p) {
        p->hosts[0].hosted.push_back({2, 0});
      },
      [](auto* p) {
        p->hosts[0].hosted.push_back({0, -1});
      },
      [](auto* p) { p->slot_bytes[0] = 0; },  // a slot of it is hosted
  };
  int number = 0;
  for (const auto& fault : faults) {
    PlacementProblem problem = Valid();
    fault(&problem);
    EXPECT_EQ(ValidateProblem(problem).code(),
              absl::StatusCode::kInvalidArgument)
        << "fault " << number;
    ++number;
  }
}

TEST(PlacementProblemTest, ChecksPlacements) {
  const PlacementProblem problem = Valid();
  HostedSlots hosted = CurrentContents(problem);
  EXPECT_TRUE(CheckPlacement(problem, hosted).ok());
  hosted[0].erase(hosted[0].begin());
  absl::Status status = CheckPlacement(problem, hosted);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("no host holds expert 0 of layer 0"));

  PlacementProblem small = problem;
  small.hosts[0].budget_bytes = 2;
  status = CheckPlacement(small, CurrentContents(small));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("more than its 2"));
}

TEST(PlacementProblemTest, LayersWithoutExpertsNeedNoHost) {
  PlacementProblem problem = MakeProblem(2, {9, 9, 1, 1});
  problem.slot_bytes[0] = 0;
  problem.hosts = {ManagedHost("a", 2, {{1, 0}, {1, 1}})};
  EXPECT_TRUE(ValidateProblem(problem).ok());
  EXPECT_TRUE(CheckPlacement(problem, CurrentContents(problem)).ok());
}

}  // namespace
}  // namespace expertmesh::router
