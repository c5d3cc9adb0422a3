#include "router_service/dispatch/lost_mass_budget.h"

#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

RoutingAccount Mass(double original, double kept) {
  RoutingAccount account;
  account.original_mass = original;
  account.kept_mass = kept;
  return account;
}

TEST(LostMassBudgetTest, IsSpentWhereMoreIsLostThanItsShareOfTheWindow) {
  LostMassBudget budget(0.02);
  EXPECT_FALSE(budget.IsSpent(absl::Seconds(100)));
  budget.Add(Mass(100, 98), absl::Seconds(100));
  EXPECT_FALSE(budget.IsSpent(absl::Seconds(100)));  // just all of it
  budget.Add(Mass(1, 0.9), absl::Seconds(100));
  EXPECT_TRUE(budget.IsSpent(absl::Seconds(100)));
  budget.Add(Mass(10, 10), absl::Seconds(101));  // exact rows earn it back
  EXPECT_FALSE(budget.IsSpent(absl::Seconds(101)));
}

TEST(LostMassBudgetTest, ForgetsWhatIsOlderThanTheWindow) {
  LostMassBudget budget(0.02);
  budget.Add(Mass(100, 50), absl::Seconds(7));
  budget.Add(Mass(100, 100), absl::Seconds(20));
  EXPECT_TRUE(budget.IsSpent(absl::Seconds(36)));
  EXPECT_FALSE(budget.IsSpent(absl::Seconds(37)));
  budget.Add(Mass(1, 0), absl::Seconds(1000));
  EXPECT_TRUE(budget.IsSpent(absl::Seconds(1000)));
}

TEST(LostMassBudgetTest, NothingAndEverything) {
  LostMassBudget none(0);
  EXPECT_TRUE(none.IsSpent(absl::Seconds(1)));
  LostMassBudget all(1);
  all.Add(Mass(1, 0), absl::Seconds(1));
  EXPECT_FALSE(all.IsSpent(absl::Seconds(1)));
}

}  // namespace
}  // namespace expertmesh::router
