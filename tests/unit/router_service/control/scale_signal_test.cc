#include "router_service/control/scale_signal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/fake_clock.h"

namespace expertmesh::router {
namespace {

using ::testing::HasSubstr;

PoolObservation Pool(int replicas, double busy_share) {
  PoolObservation pool;
  pool.pool = "hot";
  pool.replicas = replicas;
  pool.max_replicas = 10;
  pool.busy_share = busy_share;
  pool.demand_rows_per_second = 1000;
  pool.served_rows_per_second = 1000;
  return pool;
}

class ScaleSignalTest : public ::testing::Test {
 protected:
  FakeClock clock_;
  // Target 0.7, tolerance 0.1, five minutes.
  ScaleSignal signal_{{}, &clock_};
};

TEST_F(ScaleSignalTest, FollowsUtilisation) {
  const ScaleRecommendation result = signal_.Recommend(Pool(2, 0.95));
  EXPECT_EQ(result.desired_replicas, 3);  // ceil(2 · 0.95 / 0.7)
  EXPECT_EQ(result.current_replicas, 2);
  EXPECT_EQ(result.utilisation, 0.95);
  EXPECT_EQ(result.demand_rows_per_second, 1000);
  EXPECT_THAT(result.reason, HasSubstr("0.95 over target 0.70"));
}

TEST_F(ScaleSignalTest, StaysWithinTolerance) {
  EXPECT_EQ(signal_.Recommend(Pool(4, 0.76)).desired_replicas, 4);
  EXPECT_EQ(signal_.Recommend(Pool(4, 0.64)).desired_replicas, 4);
  EXPECT_EQ(signal_.Recommend(Pool(4, 0.78)).desired_replicas, 5);
}

TEST_F(ScaleSignalTest, ShortageCountsBeyondTheBusyShare) {
  PoolObservation pool = Pool(2, 1.0);
  pool.demand_rows_per_second = 3000;
  const ScaleRecommendation result = signal_.Recommend(pool);
  EXPECT_DOUBLE_EQ(result.utilisation, 3);
  EXPECT_EQ(result.desired_replicas, 9);  // ceil(2 · 3 / 0.7)
}

TEST_F(ScaleSignalTest, KeepsBounds) {
  PoolObservation pool = Pool(8, 1.0);
  const ScaleRecommendation most = signal_.Recommend(pool);
  EXPECT_EQ(most.desired_replicas, 10);
  EXPECT_THAT(most.reason, HasSubstr("needs 12; never more than 10"));
  clock_.Advance(absl::Minutes(6));
  pool.busy_share = 0;
  pool.min_replicas = 4;
  const ScaleRecommendation least = signal_.Recommend(pool);
  EXPECT_EQ(least.desired_replicas, 4);
  EXPECT_THAT(least.reason, HasSubstr("needs 0; never less than 4"));
}

TEST_F(ScaleSignalTest, ShrinksOnlyAfterTheWindow) {
  EXPECT_EQ(signal_.Recommend(Pool(6, 0.7)).desired_replicas, 6);
  clock_.Advance(absl::Minutes(2));
  EXPECT_EQ(signal_.Recommend(Pool(6, 0.4)).desired_replicas, 6);
  clock_.Advance(absl::Minutes(2));
  const ScaleRecommendation kept = signal_.Recommend(Pool(6, 0.2));
  EXPECT_EQ(kept.desired_replicas, 6);
  EXPECT_THAT(kept.reason, HasSubstr("kept at 6"));
  clock_.Advance(absl::Minutes(1));  // the 6 of the beginning is forgotten
  EXPECT_EQ(signal_.Recommend(Pool(6, 0.2)).desired_replicas, 4);
  clock_.Advance(absl::Minutes(5));
  EXPECT_EQ(signal_.Recommend(Pool(6, 0.2)).desired_replicas, 2);
}

TEST_F(ScaleSignalTest, ReplicasThatCameAreLeftAlone) {
  // As a controller finds them that has just started.
  EXPECT_EQ(signal_.Recommend(Pool(3, 0)).desired_replicas, 3);
  clock_.Advance(absl::Minutes(4));
  EXPECT_EQ(signal_.Recommend(Pool(5, 0)).desired_replicas, 5);
  clock_.Advance(absl::Minutes(4));
  EXPECT_EQ(signal_.Recommend(Pool(5, 0)).desired_replicas, 5);
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(signal_.Recommend(Pool(5, 0)).desired_replicas, 1);
}

TEST_F(ScaleSignalTest, HistoryNeverMakesItGrow) {
  EXPECT_EQ(signal_.Recommend(Pool(8, 0.7)).desired_replicas, 8);
  clock_.Advance(absl::Minutes(1));
  // Somebody took five away, and three are enough.
  EXPECT_EQ(signal_.Recommend(Pool(3, 0.7)).desired_replicas, 3);
  EXPECT_EQ(signal_.Recommend(Pool(3, 0.2)).desired_replicas, 3);
}

TEST_F(ScaleSignalTest, PoolsHaveHistoriesOfTheirOwn) {
  PoolObservation base = Pool(6, 0.2);
  base.pool = "base";
  signal_.Recommend(base);
  clock_.Advance(absl::Minutes(4));
  signal_.Recommend(Pool(6, 0.7));
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(signal_.Recommend(base).desired_replicas, 2);
  EXPECT_EQ(signal_.Recommend(Pool(6, 0.2)).desired_replicas, 6);
}

TEST_F(ScaleSignalTest, AnEmptyPoolIsGivenTheLeast) {
  PoolObservation pool = Pool(0, 0);
  pool.demand_rows_per_second = 0;
  EXPECT_EQ(signal_.Recommend(pool).desired_replicas, 1);
}

// One of three is killed, and the others take its work or have none at all.
TEST_F(ScaleSignalTest, OneLostFromSightTakesNoOtherAway) {
  for (const double busy_share : {0.0, 0.7}) {
    ScaleSignal signal({}, &clock_);
    EXPECT_EQ(signal.Recommend(Pool(3, busy_share)).desired_replicas, 3);
    clock_.Advance(absl::Seconds(1));
    PoolObservation pool = Pool(2, busy_share);
    pool.unseen_replicas = 1;
    EXPECT_EQ(signal.Recommend(pool).desired_replicas, 3);
  }
}

TEST_F(ScaleSignalTest, ADrainingOneIsReplacedWithinTheWindow) {
  EXPECT_EQ(signal_.Recommend(Pool(3, 0)).desired_replicas, 3);
  clock_.Advance(absl::Seconds(1));
  PoolObservation pool = Pool(2, 0);
  pool.draining_replicas = 1;
  EXPECT_EQ(signal_.Recommend(pool).desired_replicas, 3);
  clock_.Advance(absl::Minutes(5));
  EXPECT_EQ(signal_.Recommend(pool).desired_replicas, 1);
}

TEST_F(ScaleSignalTest, WhatIsOutOfSightForLongIsLeftAlone) {
  EXPECT_EQ(signal_.Recommend(Pool(4, 0)).desired_replicas, 4);
  PoolObservation pool = Pool(0, 0);
  pool.unseen_replicas = 4;
  clock_.Advance(absl::Minutes(10));
  const ScaleRecommendation none_seen = signal_.Recommend(pool);
  EXPECT_EQ(none_seen.desired_replicas, 4);
  EXPECT_THAT(none_seen.reason, HasSubstr("4 out of sight left alone"));
  // Two come back idle.
  pool.replicas = pool.unseen_replicas = 2;
  EXPECT_EQ(signal_.Recommend(pool).desired_replicas, 4);
  clock_.Advance(absl::Minutes(10));
  EXPECT_EQ(signal_.Recommend(pool).desired_replicas, 2);
}

TEST_F(ScaleSignalTest, OneThatIsNotThereYetIsOneOfThoseNeeded) {
  PoolObservation pool = Pool(2, 0.95);
  pool.unseen_replicas = 1;
  EXPECT_EQ(signal_.Recommend(pool).desired_replicas, 3);
  pool.busy_share = 1.5;
  EXPECT_EQ(signal_.Recommend(pool).desired_replicas, 5);
}

TEST_F(ScaleSignalTest, NonsenseCountsAsNothing) {
  PoolObservation pool = Pool(2, std::numeric_limits<double>::quiet_NaN());
  pool.demand_rows_per_second = std::numeric_limits<double>::infinity();
  const ScaleRecommendation result = signal_.Recommend(pool);
  EXPECT_EQ(result.utilisation, 0);
  EXPECT_EQ(result.demand_rows_per_second, 0);
  clock_.Advance(absl::Minutes(5));
  EXPECT_EQ(signal_.Recommend(pool).desired_replicas, 1);
}

}  // namespace
}  // namespace expertmesh::router
