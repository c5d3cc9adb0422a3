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

}  // namespace
}  // namespace expertmesh::router
