#include "router_service/dispatch/endpoint_loads.h"

#include <gtest/gtest.h>

#include <vector>

namespace expertmesh::router {
namespace {

// So many faults, each as soon as the endpoint may be asked again. Returns when
// the last one was.
absl::Duration FailOften(int endpoint, int times, EndpointLoads* loads) {
  absl::Duration now = absl::Seconds(1);
  for (int i = 0; i < times; ++i) {
    loads->OnSend(endpoint, 1);
    loads->OnError(endpoint, {.rows = 1}, absl::InternalError("device"), now);
    if (i + 1 < times) now = loads->NextReopening(now);
  }
  return now;
}

TEST(EndpointLoadsTest, WhatFailsOftenIsLeftAloneForLong) {
  EndpointLoads loads;
  const std::vector<int> replicas = {0, 1};
  const absl::Duration now = FailOften(0, 8, &loads);
  loads.BeginChoice(now + absl::Seconds(29));
  EXPECT_EQ(loads.Choose(replicas, {}, 1), 1);
  // Nor where the other one has no room.
  loads.OnSend(1, 1);
  loads.OnAnswer(1, {.rows = 1, .rows_ahead = 1, .credit_rows = 1}, now);
  loads.OnSend(1, 1);
  EXPECT_EQ(loads.Choose(replicas, {}, 1), EndpointLoads::kNobody);
}

TEST(EndpointLoadsTest, TheLastReplicaIsTriedSoon) {
  EndpointLoads loads;
  const std::vector<int> replicas = {0, 1};
  const absl::Duration now = FailOften(0, 8, &loads);
  loads.OnSend(1, 1);
  loads.OnOverdue(1);
  loads.BeginChoice(now + absl::Milliseconds(499));
  EXPECT_EQ(loads.Choose(replicas, {}, 1), EndpointLoads::kNobody);
  loads.BeginChoice(now + absl::Milliseconds(500));
  EXPECT_EQ(loads.Choose(replicas, {}, 1), 0);
  // One batch at a time.
  loads.OnSend(0, 1);
  EXPECT_EQ(loads.Choose(replicas, {}, 1), EndpointLoads::kNobody);
}

TEST(EndpointLoadsTest, CreditIsKeptToFromTheFirstRowAndAfterRefusals) {
  EndpointLoads loads;
  const std::vector<int> replicas = {0};
  const absl::Duration now = absl::Seconds(1);
  loads.SetFirstCredit(0, 8);
  loads.BeginChoice(now);
  loads.OnSend(0, 5);
  EXPECT_EQ(loads.Choose(replicas, {}, 4), EndpointLoads::kNobody);
  EXPECT_EQ(loads.Choose(replicas, {}, 3), 0);
  loads.OnAnswer(0, {.rows = 5, .rows_ahead = 5, .credit_rows = 16}, now);
  loads.SetFirstCredit(0, 8);  // it has answered since
  loads.BeginChoice(now);
  loads.OnSend(0, 10);
  EXPECT_EQ(loads.Choose(replicas, {}, 6), 0);
  loads.OnSend(0, 6);
  loads.OnError(0, {.rows = 6, .credit_rows = 11},
                absl::ResourceExhaustedError("full"), now);
  loads.OnAnswer(0, {.rows = 10, .rows_ahead = 10}, now);
  loads.BeginChoice(now + absl::Seconds(1));
  loads.OnSend(0, 10);
  EXPECT_EQ(loads.Choose(replicas, {}, 2), EndpointLoads::kNobody);
  EXPECT_EQ(loads.Choose(replicas, {}, 1), 0);
}

// Two hosts that take 50 us a row, or so many times that.
class UnevenHosts {
 public:
  std::vector<double> slowness = {1, 1};

  // Sends waves of 32 pieces; returns the share of the first host.
  double Share(int num_waves) {
    int64_t rows[2] = {};
    for (int wave = 0; wave < num_waves; ++wave) {
      now_ += absl::Milliseconds(100);
      loads_.BeginChoice(now_);
      int64_t chosen[2] = {};
      for (int piece = 0; piece < 32; ++piece) {
        chosen[loads_.Choose({0, 1}, {}, 64)] += 64;
      }
      for (const int host : {0, 1}) Serve(host, chosen[host]);
      for (const int host : {0, 1}) rows[host] += chosen[host];
    }
    return static_cast<double>(rows[0]) /
           static_cast<double>(rows[0] + rows[1]);
  }

 private:
  void Serve(int host, int64_t rows) {
    if (rows == 0) return;
    loads_.OnSend(host, rows);
    const absl::Duration taken =
        slowness[host] * (absl::Milliseconds(1) +
                          static_cast<double>(rows) * absl::Microseconds(50));
    loads_.OnAnswer(host, {.rows = rows, .rows_ahead = rows, .taken = taken},
                    now_);
  }

  EndpointLoads loads_;
  absl::Duration now_ = absl::Seconds(1);
};

TEST(EndpointLoadsTest, RowsAreInProportionToSpeedAndFollowIt) {
  constexpr double kPiece = 1.0 / 32;
  UnevenHosts hosts;
  hosts.Share(200);
  EXPECT_NEAR(hosts.Share(20), 0.5, kPiece);
  // As soon as some dozens of waves.
  hosts.slowness = {1, 2};
  hosts.Share(25);
  EXPECT_NEAR(hosts.Share(20), 2.0 / 3, kPiece);
  hosts.Share(200);
  EXPECT_NEAR(hosts.Share(20), 2.0 / 3, kPiece);
  hosts.slowness = {1, 1};
  hosts.Share(25);
  EXPECT_NEAR(hosts.Share(20), 0.5, kPiece);
}

// Two endpoints that both hold everything.
class ReplicaChoiceTest : public ::testing::Test {
 protected:
  // So many batches of so many rows, one after the other.
  void Answer(int endpoint, int times, int64_t rows, absl::Duration taken,
              absl::Duration computed) {
    for (int i = 0; i < times; ++i) {
      loads_.OnSend(endpoint, rows);
      now_ += absl::Milliseconds(1);
      loads_.OnAnswer(endpoint,
                      {.rows = rows,
                       .rows_ahead = rows,
                       .credit_rows = 0,
                       .taken = taken,
                       .computed = computed},
                      now_);
    }
  }

  // The share of a large wave that endpoint 0 is given.
  double ShareOfFirst() {
    constexpr int kPieces = 1000;
    loads_.BeginChoice(now_);
    int first = 0;
    for (int i = 0; i < kPieces; ++i) {
      first += loads_.Choose(kReplicas, {}, 1) == 0 ? 1 : 0;
    }
    return static_cast<double>(first) / kPieces;
  }

  static constexpr int kReplicas[] = {0, 1};
  EndpointLoads loads_;
  absl::Duration now_ = absl::Seconds(1);
};

TEST_F(ReplicaChoiceTest, RowsGoInProportionToSpeed) {
  Answer(0, 20, 100, absl::Milliseconds(2), absl::Microseconds(400));
  Answer(1, 20, 100, absl::Microseconds(2800), absl::Microseconds(1200));
  EXPECT_NEAR(ShareOfFirst(), 0.75, 0.01);
}

TEST_F(ReplicaChoiceTest, SmallDifferencesAreNoSpeed) {
  Answer(0, 20, 100, absl::Milliseconds(2), absl::Microseconds(400));
  Answer(1, 20, 100, absl::Milliseconds(2), absl::Microseconds(490));
  EXPECT_NEAR(ShareOfFirst(), 0.5, 0.01);
}

// What is not computing takes as long for ten rows as for a hundred.
TEST_F(ReplicaChoiceTest, WhoGotFewRowsIsNotSlow) {
  Answer(0, 20, 100, absl::Milliseconds(2), absl::Microseconds(500));
  Answer(1, 20, 10, absl::Microseconds(1550), absl::Microseconds(50));
  EXPECT_NEAR(ShareOfFirst(), 0.5, 0.01);
}

TEST_F(ReplicaChoiceTest, WhoIsFarAwayGetsFew) {
  Answer(0, 20, 100, absl::Milliseconds(20), absl::Microseconds(500));
  Answer(1, 20, 100, absl::Milliseconds(1), absl::Microseconds(500));
  EXPECT_NEAR(ShareOfFirst(), 0, 0.05);
}

TEST_F(ReplicaChoiceTest, AHiccupIsNoSpeed) {
  for (const int endpoint : kReplicas) {
    Answer(endpoint, 100, 100, absl::Milliseconds(1), absl::Microseconds(500));
  }
  Answer(0, 1, 100, absl::Milliseconds(100), absl::Milliseconds(99));
  EXPECT_NEAR(ShareOfFirst(), 0.5, 0.05);
}

TEST_F(ReplicaChoiceTest, WhatWasSlowIsForgottenOnceMeasuredAnew) {
  Answer(0, 100, 100, absl::Milliseconds(100), absl::Milliseconds(90));
  now_ += absl::Seconds(2);
  Answer(1, 100, 100, absl::Milliseconds(1), absl::Microseconds(500));
  Answer(0, 1, 100, absl::Milliseconds(1), absl::Microseconds(500));
  EXPECT_NEAR(ShareOfFirst(), 0.5, 0.01);
}

TEST_F(ReplicaChoiceTest, TheLastIsRelievedWhereThatHelps) {
  for (const int endpoint : kReplicas) {
    Answer(endpoint, 20, 100, absl::Milliseconds(1), absl::Microseconds(500));
  }
  loads_.BeginChoice(now_);
  EXPECT_EQ(loads_.Last(), EndpointLoads::kNobody);
  ASSERT_EQ(loads_.Choose(absl::MakeConstSpan(kReplicas).first(1), {}, 96), 0);
  ASSERT_EQ(loads_.Choose(absl::MakeConstSpan(kReplicas).last(1), {}, 32), 1);
  EXPECT_EQ(loads_.Last(), 0);
  EXPECT_EQ(loads_.FindRelief(0, kReplicas, {}, 32).endpoint, 1);
  // Not where that makes the other as late, or it must not be asked.
  EXPECT_EQ(loads_.FindRelief(0, kReplicas, {}, 64).endpoint,
            EndpointLoads::kNobody);
  EXPECT_EQ(
      loads_
          .FindRelief(0, kReplicas, absl::MakeConstSpan(kReplicas).last(1), 32)
          .endpoint,
      EndpointLoads::kNobody);
  loads_.SetUnrelievable(0);
  EXPECT_EQ(loads_.Last(), 1);
  loads_.MoveSetAside(0, 1, 32);
  EXPECT_EQ(loads_.FindRelief(0, kReplicas, {}, 32).endpoint,
            EndpointLoads::kNobody);
}

}  // namespace
}  // namespace expertmesh::router
