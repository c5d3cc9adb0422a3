#include "services/cli/bench_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace expertmesh {
namespace {

constexpr absl::Duration kNow = absl::ZeroDuration();

std::vector<absl::Duration> Arrivals(const LoadLevel& level, uint64_t seed) {
  LoadSchedule schedule(level, seed);
  std::vector<absl::Duration> arrivals;
  while (const auto next = schedule.Next()) {
    arrivals.push_back(*next);
    schedule.Sent();
  }
  return arrivals;
}

TEST(LoadSchedule, AClosedLoopReplacesWhatEnds) {
  LoadSchedule schedule({.concurrency = 2, .max_requests = 3}, 1);
  EXPECT_EQ(schedule.Next(), kNow);
  schedule.Sent();
  EXPECT_EQ(schedule.Next(), kNow);
  schedule.Sent();
  EXPECT_EQ(schedule.Next(), std::nullopt) << "two are under way";
  schedule.Ended(absl::Seconds(5), true);
  EXPECT_EQ(schedule.Next(), absl::Seconds(5));
  schedule.Sent();
  schedule.Ended(absl::Seconds(6), true);
  EXPECT_EQ(schedule.Next(), std::nullopt) << "three were asked for";
}

TEST(LoadSchedule, AClosedLoopPausesAfterAFailure) {
  LoadSchedule schedule({.concurrency = 1, .max_requests = 9}, 1);
  schedule.Sent();
  schedule.Ended(absl::Seconds(1), false);
  EXPECT_EQ(schedule.Next(), absl::Seconds(1) + LoadSchedule::kPause);
}

TEST(LoadSchedule, ALevelEndsWithItsDuration) {
  LoadSchedule schedule({.concurrency = 1, .duration = absl::Seconds(2)}, 1);
  schedule.Sent();
  schedule.Ended(absl::Seconds(1.9), true);
  EXPECT_EQ(schedule.Next(), absl::Seconds(1.9));
  schedule.Sent();
  schedule.Ended(absl::Seconds(2), true);
  EXPECT_EQ(schedule.Next(), std::nullopt);
}

TEST(LoadSchedule, ArrivalsAreAPoissonProcess) {
  const std::vector<absl::Duration> arrivals =
      Arrivals({.request_rate = 50, .max_requests = 20000}, 3);
  ASSERT_EQ(arrivals.size(), 20000);
  double sum = 0, squares = 0;
  absl::Duration last;
  for (const absl::Duration arrival : arrivals) {
    ASSERT_GE(arrival, last);
    const double gap = absl::ToDoubleSeconds(arrival - last);
    sum += gap;
    squares += gap * gap;
    last = arrival;
  }
  // An exponential distribution's deviation is its mean.
  const double mean = sum / 20000;
  EXPECT_NEAR(mean, 0.02, 0.001);
  EXPECT_NEAR(std::sqrt(squares / 20000 - mean * mean), 0.02, 0.001);
}

TEST(LoadSchedule, ArrivalsDependOnTheSeedAlone) {
  const LoadLevel level = {.request_rate = 5, .max_requests = 100};
  EXPECT_EQ(Arrivals(level, 1), Arrivals(level, 1));
  EXPECT_NE(Arrivals(level, 1), Arrivals(level, 2));
}

TEST(LoadSchedule, ArrivalsWaitForNobodyAndEndWithTheDuration) {
  const auto arrivals =
      Arrivals({.request_rate = 100, .duration = absl::Seconds(10)}, 1);
  EXPECT_NEAR(static_cast<double>(arrivals.size()), 1000, 150);
  EXPECT_LT(arrivals.back(), absl::Seconds(10));
}

TEST(LoadSchedule, AnInfiniteRateIsAllAtOnce) {
  EXPECT_THAT(Arrivals({.request_rate = std::numeric_limits<double>::infinity(),
                        .max_requests = 3},
                       1),
              ::testing::ElementsAre(kNow, kNow, kNow));
}

TEST(LoadLevel, Names) {
  EXPECT_EQ(LoadLevel{.concurrency = 8}.Name(), "concurrency 8");
  EXPECT_EQ(LoadLevel{.request_rate = 2.5}.Name(), "2.5 requests/s");
  EXPECT_EQ(
      LoadLevel{.request_rate = std::numeric_limits<double>::infinity()}.Name(),
      "all requests at once");
}

}  // namespace
}  // namespace expertmesh
