#include "router_service/dispatch/lost_mass_budget.h"

#include <gtest/gtest.h>

#include <limits>

namespace expertmesh::router {
namespace {

RoutingAccount Mass(double original, double kept) {
  RoutingAccount account;
  account.original_mass = original;
  account.kept_mass = kept;
  return account;
}

// What a plan of so much mass may lose.
double Allowed(LostMassBudget& budget, double plan_mass, int64_t seconds) {
  const LossAllowance allowance = budget.Allowance(absl::Seconds(seconds));
  return allowance.mass + allowance.share * plan_mass;
}

TEST(LostMassBudgetTest, AllowsWhatKeepsTheWindowWithinItsShare) {
  LostMassBudget budget(0.02);
  EXPECT_DOUBLE_EQ(Allowed(budget, 50, 100), 1);  // its own mass is there
  budget.Add({Mass(60, 60), Mass(40, 39)}, absl::Seconds(100));
  EXPECT_DOUBLE_EQ(Allowed(budget, 0, 100), 1);
  EXPECT_DOUBLE_EQ(Allowed(budget, 50, 100), 2);
  budget.Add({Mass(50, 47)}, absl::Seconds(101));
  EXPECT_DOUBLE_EQ(Allowed(budget, 0, 101), -1);
  budget.Add({Mass(100, 100)}, absl::Seconds(101));  // exact rows earn it back
  EXPECT_DOUBLE_EQ(Allowed(budget, 0, 101), 1);
}

TEST(LostMassBudgetTest, ForgetsWhatIsOlderThanTheWindow) {
  LostMassBudget budget(0.02);
  budget.Add({Mass(100, 50)}, absl::Seconds(7));
  budget.Add({Mass(100, 100)}, absl::Seconds(20));
  EXPECT_DOUBLE_EQ(Allowed(budget, 0, 36), -46);
  EXPECT_DOUBLE_EQ(Allowed(budget, 0, 37), 2);
  EXPECT_DOUBLE_EQ(Allowed(budget, 0, 1000), 0);
}

TEST(LostMassBudgetTest, NothingAndEverything) {
  LostMassBudget none(0);
  none.Add({Mass(100, 100)}, absl::Seconds(1));
  EXPECT_EQ(Allowed(none, 100, 1), 0);
  LostMassBudget all(1);
  all.Add({Mass(1, 0)}, absl::Seconds(1));
  EXPECT_EQ(Allowed(all, 1, 1), std::numeric_limits<double>::infinity());
}

TEST(LostMassBudgetTest, MassThatIsNoNumberIsLeftOut) {
  LostMassBudget budget(0.5);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  budget.Add({Mass(nan, nan), Mass(10, 8)}, absl::Seconds(1));
  EXPECT_DOUBLE_EQ(Allowed(budget, 0, 1), 3);
}

}  // namespace
}  // namespace expertmesh::router
