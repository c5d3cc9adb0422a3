#include "router_service/engine/prefill_budget.h"

#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

constexpr int64_t kMaxTokens = 512;

// Steps of `fixed` and `per_token` that use the whole budget.
void RunSteps(int steps, absl::Duration fixed, absl::Duration per_token,
              PrefillBudget* budget) {
  for (int i = 0; i < steps; ++i) {
    const int64_t tokens = budget->tokens();
    budget->OnStep(tokens, fixed + tokens * per_token);
  }
}

TEST(PrefillBudgetTest, WithoutATargetItIsTheWholeStep) {
  PrefillBudget budget(absl::ZeroDuration(), kMaxTokens);
  budget.OnStep(kMaxTokens, absl::Hours(1));
  EXPECT_EQ(budget.tokens(), kMaxTokens);
}

TEST(PrefillBudgetTest, ApproachesTheTargetFromEitherSide) {
  PrefillBudget budget(absl::Milliseconds(50), kMaxTokens);
  // 10 ms + 200 tokens · 0.2 ms.
  RunSteps(40, absl::Milliseconds(10), absl::Microseconds(200), &budget);
  EXPECT_NEAR(static_cast<double>(budget.tokens()), 200, 4);
  // Slower experts: 10 ms + 100 tokens · 0.4 ms.
  RunSteps(40, absl::Milliseconds(10), absl::Microseconds(400), &budget);
  EXPECT_NEAR(static_cast<double>(budget.tokens()), 100, 2);
}

TEST(PrefillBudgetTest, StaysWithinTheFloorAndTheStep) {
  PrefillBudget budget(absl::Milliseconds(50), kMaxTokens);
  RunSteps(20, absl::Milliseconds(80), absl::Milliseconds(1), &budget);
  EXPECT_EQ(budget.tokens(), PrefillBudget::kFloor);
  RunSteps(40, absl::Milliseconds(1), absl::Nanoseconds(1), &budget);
  EXPECT_EQ(budget.tokens(), kMaxTokens);
  PrefillBudget tiny(absl::Milliseconds(50), 4);
  RunSteps(20, absl::Milliseconds(80), absl::Milliseconds(1), &tiny);
  EXPECT_EQ(tiny.tokens(), 4);
}

TEST(PrefillBudgetTest, OneLateStepIsSoonForgotten) {
  PrefillBudget budget(absl::Milliseconds(50), kMaxTokens);
  RunSteps(40, absl::Milliseconds(10), absl::Microseconds(200), &budget);
  budget.OnStep(budget.tokens(), absl::Seconds(10));
  EXPECT_GE(budget.tokens(), 98);
  RunSteps(4, absl::Milliseconds(10), absl::Microseconds(200), &budget);
  EXPECT_GE(budget.tokens(), 180);
}

TEST(PrefillBudgetTest, StepsThatUsedLittleDoNotRaiseIt) {
  PrefillBudget budget(absl::Milliseconds(50), kMaxTokens);
  const int64_t before = budget.tokens();
  budget.OnStep(before / 2, absl::Milliseconds(1));
  budget.OnStep(0, absl::Seconds(1));
  EXPECT_EQ(budget.tokens(), before);
  // But they lower it where they were late all the same.
  budget.OnStep(before / 2, absl::Milliseconds(60));
  EXPECT_LT(budget.tokens(), before / 2);
}

}  // namespace
}  // namespace expertmesh::router
