#include "router_service/dispatch/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <utility>

#include "tests/unit/router_service/dispatch/dispatcher_fixture.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;

TEST_F(DispatcherTest, OneMessageForAllExpertsOfAnEndpoint) {
  Place({{0}, {1}, {0}, {1}});
  Plan({0, 1, 2, 3}, 3);
  Exchange();
  ExpectEchoed();
  const auto sent = mesh_.sent();
  ASSERT_EQ(sent.size(), 2u);
  EXPECT_THAT(sent[0].expert_ids, ElementsAre(0, 2));
  EXPECT_THAT(sent[1].expert_ids, ElementsAre(1, 3));
}

TEST_F(DispatcherTest, PartsByTokenRange) {
  Place({{0}, {0}});
  Plan({0, 1}, 5);
  for (const auto& [bytes, messages] :
       {std::pair(1 << 20, 1), {4 * 16, 2}, {2 * 16, 3}, {1, 5}}) {
    options_.max_message_bytes = bytes;
    Start();
    const int before = mesh_.num_sent(0);
    Exchange();
    EXPECT_EQ(mesh_.num_sent(0) - before, messages) << bytes;
    ExpectEchoed();
  }
}

TEST_F(DispatcherTest, WavesGoOneAfterTheOther) {
  Place({{0}, {0}});
  Plan({0, 1}, 3, /*num_waves=*/3);
  Exchange();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(0), 3);
}

TEST_F(DispatcherTest, ReplicasShareRows) {
  Place({{0, 1}});
  Plan({0}, 256);
  Exchange();
  ExpectEchoed();
  size_t rows[2] = {};
  for (const auto& sent : mesh_.sent()) rows[sent.endpoint] += sent.num_rows;
  EXPECT_EQ(rows[0], 128u);
  EXPECT_EQ(rows[1], 128u);
}

TEST_F(DispatcherTest, WhatAnEndpointLostGoesToAnotherAtOnce) {
  Place({{0, 1}, {0, 2}});
  Plan({0, 1}, 2);
  mesh_.Fail(0, absl::UnavailableError("gone"));
  Exchange();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(0), 1);
}

TEST_F(DispatcherTest, EveryErrorIsSurvivedWhereThereIsAReplica) {
  for (const absl::Status& error :
       {absl::UnavailableError("gone"), absl::InternalError("device"),
        absl::ResourceExhaustedError("full"),
        absl::FailedPreconditionError("not hosted"),
        absl::DeadlineExceededError("late")}) {
    Place({{0, 1}});
    Plan({0}, 2);
    Start();
    mesh_.Fail(0, error);
    for (int i = 0; i < 3; ++i) {
      Exchange();
      ExpectEchoed();
    }
  }
}

TEST_F(DispatcherTest, ReplicasThatAllDoNotHostItAreNotAskedForEver) {
  Place({{0, 1}});
  Plan({0}, 2);
  for (int i = 0; i < 1000; ++i) {
    mesh_.Fail(0, absl::FailedPreconditionError("not hosted"));
    mesh_.Fail(1, absl::FailedPreconditionError("not hosted"));
  }
  Exchange();
  EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
  EXPECT_LT(mesh_.sent().size(), 100u);
}

TEST_F(DispatcherTest, ExpertsRefusedTogetherAreAskedForOneByOne) {
  Place({{0}, {0}, {0}});
  Plan({0, 1, 2}, 2);
  mesh_.Fail(0, absl::FailedPreconditionError("one is not hosted"));
  Exchange();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(0), 4);
}

TEST_F(DispatcherTest, ANewReplicaIsMeasuredAtOnce) {
  Place({{0}});
  Plan({0}, 1);
  Start();
  Settle();
  Place({{0, 1}});
  Exchange();
  EXPECT_EQ(mesh_.num_sent(1), 1);
}

TEST_F(DispatcherTest, AThirdReplicaServesWhenTwoAreFaulty) {
  Place({{0, 1, 2}});
  Plan({0}, 1);
  mesh_.Fail(0, absl::InternalError("device"));
  mesh_.Fail(1, absl::InternalError("device"));
  Exchange();
  ExpectEchoed();
}

TEST_F(DispatcherTest, RowsThatWaitForRoomAreNotUncovered) {
  options_.uncovered_timeout = absl::ZeroDuration();
  Place({{0}, {0}, {0}});
  Plan({0, 1, 2}, 1);
  mesh_.set_credit(1);
  Exchange();
  mesh_.Hold(0);
  std::thread endpoint([&] {
    for (int sent = 2; sent <= 4; ++sent) {
      mesh_.AwaitSent(0, sent);
      mesh_.Release(0);
    }
  });
  Exchange();
  endpoint.join();
  ExpectEchoed();
}

TEST_F(DispatcherTest, AFullQueueIsAskedAgain) {
  Place({{0}});
  Plan({0}, 3);
  mesh_.Fail(0, absl::ResourceExhaustedError("full"));
  mesh_.Fail(0, absl::ResourceExhaustedError("full"));
  Exchange();
  EXPECT_EQ(mesh_.num_sent(0), 3);
  ExpectEchoed();
}

TEST_F(DispatcherTest, ADeviceFaultIsTriedTwiceAndKeepsItsCode) {
  options_.uncovered_timeout = absl::Seconds(10);
  Place({{0}});
  Plan({0}, 1);
  mesh_.Fail(0, absl::InternalError("device"));
  mesh_.Fail(0, absl::InternalError("device"));
  Exchange();
  EXPECT_EQ(mesh_.num_sent(0), 2);
  EXPECT_EQ(FailureCode(), absl::StatusCode::kInternal);
}

TEST_F(DispatcherTest, OnlyRowsOfAnUncoveredExpertFail) {
  Place({{0}, {}});
  Plan({0, 1}, 2);
  Exchange();
  EXPECT_EQ(ticket_->failures().size(), 2u);
  EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
}

TEST_F(DispatcherTest, AStepWaitsForCoverageOnlyOnce) {
  options_.uncovered_timeout = absl::Milliseconds(300);
  Place({{}});
  Plan({0}, 1);
  int64_t asked = 0;
  must_wait_ = [&](uint32_t) {
    ++asked;
    return true;
  };
  Exchange();
  const int64_t before = asked;
  EXPECT_GT(before, 0);
  for (int layer = 0; layer < 5; ++layer) {
    ExchangeInStep();
    EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(asked, before);  // who has waited is not asked to
}

TEST_F(DispatcherTest, RowsWaitForAPlacementThatCoversThem) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0}, {}});
  Plan({0, 1}, 2);
  Start();
  std::thread operator_thread([&] {
    mesh_.AwaitSent(0, 1);
    Place({{0}, {1}});
  });
  Exchange();
  operator_thread.join();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(1), 1);
}

TEST_F(DispatcherTest, RowsThatNoTokenHasToWaitForFailSoon) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0}, {}});
  Plan({0, 1}, 2);
  must_wait_ = [](uint32_t) { return false; };
  Exchange();
  ASSERT_EQ(ticket_->failures().size(), 2u);
  EXPECT_EQ(ticket_->failures()[0].row, 2u);
  EXPECT_EQ(ticket_->failures()[1].row, 3u);
  EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
  // Another expert may give them, in their place.
  plan_.groups[1].expert_id = 0;
  dispatcher_->Retry({2, 3}, ticket_.get(), must_wait_);
  ExpectEchoed();
}

TEST_F(DispatcherTest, AConnectionThatComesBackAtOnceIsWaitedFor) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0}});
  Plan({0}, 2);
  must_wait_ = [](uint32_t) { return false; };
  mesh_.Fail(0, absl::UnavailableError("gone"));
  Exchange();
  ExpectEchoed();
}

// As for want of anybody, not for a fault: others may serve those tokens.
TEST_F(DispatcherTest, RowsOfAFaultyReplicaThatNeedNotWaitAreUncovered) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0}});
  Plan({0}, 1);
  must_wait_ = [](uint32_t) { return false; };
  mesh_.Fail(0, absl::InternalError("device"));
  Exchange();
  EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
}

TEST_F(DispatcherTest, TwoStuckReplicasHoldNobodyWhoNeedNotWait) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0, 1}});
  Plan({0}, 1);
  must_wait_ = [](uint32_t) { return false; };
  Start();
  Settle();
  mesh_.Hold(0);
  mesh_.Hold(1);
  Exchange();
  EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
}

TEST_F(DispatcherTest, OneTokenThatHasToWaitKeepsThePiece) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0}, {}});
  Plan({0, 1}, 2);
  Start();
  std::atomic<int> asked = 0;
  must_wait_ = [&](uint32_t token) { return asked += token, token == 1; };
  std::thread operator_thread([&] {
    while (asked < 3) std::this_thread::yield();
    Place({{0}, {1}});
  });
  Exchange();
  operator_thread.join();
  ExpectEchoed();
}

TEST_F(DispatcherTest, WhoIsNotWantedAnyMoreIsNotWaitedFor) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{}});
  Plan({0}, 1);
  int asked = 0;
  must_wait_ = [&](uint32_t) { return ++asked < 4; };
  Exchange();
  EXPECT_EQ(asked, 4);
  EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
}

TEST_F(DispatcherTest, AStuckEndpointIsNotWaitedForWhereNoTokenHasTo) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0}});
  Plan({0}, 2);
  Start();
  Settle();
  mesh_.Hold(0);
  must_wait_ = [](uint32_t) { return false; };
  Exchange();
  EXPECT_EQ(ticket_->failures().size(), 2u);
  EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
  // Its late answer is no harm, and it serves again.
  mesh_.Hold(0, false);
  mesh_.Release(0);
  Exchange();
  ExpectEchoed();
}

TEST_F(DispatcherTest, AnOverdueBatchIsAskedOfAnother) {
  options_.hedge_budget = 0;
  Place({{0, 1}});
  Plan({0}, 1);
  Start();
  // Endpoint 1 is the slower one, so 0 is asked first.
  mesh_.Hold(1);
  std::atomic<bool> stop = false;
  std::thread slow([&] {
    while (!stop) {
      absl::SleepFor(absl::Milliseconds(1));
      mesh_.Release(1);
    }
  });
  Settle();
  // Endpoint 0 hangs: its batch is overdue, and it is left alone.
  mesh_.Hold(0);
  Exchange();
  ExpectEchoed();
  const int stuck = mesh_.num_sent(0);
  for (int i = 0; i < 20; ++i) {
    Exchange();
    ExpectEchoed();
  }
  EXPECT_EQ(mesh_.num_sent(0), stuck);
  // Its late answer changes nothing, and shows that it works again.
  mesh_.Hold(0, false);
  mesh_.Release(0);
  while (mesh_.num_sent(0) == stuck) {
    Exchange();
    ExpectEchoed();
  }
  stop = true;
  slow.join();
}

TEST_F(DispatcherTest, TimeoutsOfAllReplicasAreWaitedOut) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0, 1}});
  Plan({0}, 2);
  mesh_.Fail(0, absl::DeadlineExceededError("late"));
  mesh_.Fail(1, absl::DeadlineExceededError("late"));
  Exchange();
  ExpectEchoed();
}

TEST_F(DispatcherTest, WhoWasAskedInsteadOfAStuckOneMayFailToo) {
  options_.hedge_budget = 0;
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0}});
  Plan({0}, 1);
  Start();
  Settle();
  Place({{0, 1}});
  mesh_.Hold(0);
  mesh_.Fail(1, absl::UnavailableError("gone"));
  // Hangs unless endpoint 1 is asked again: endpoint 0 never answers.
  Exchange();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(0), 41);
  EXPECT_EQ(mesh_.num_sent(1), 2);
}

TEST_F(DispatcherTest, WhoGaveBadValuesIsNotAskedAgainWhileTheOtherIsBusy) {
  options_.uncovered_timeout = absl::Minutes(5);
  Place({{0, 1}});
  Plan({0}, 1);
  Settle();
  const int sent = mesh_.num_sent(0);
  Exchange();
  const int bad = mesh_.num_sent(0) > sent ? 0 : 1;
  const int asked = mesh_.num_sent(bad);
  for (int i = 0; i < 3; ++i) {
    mesh_.Fail(1 - bad, absl::ResourceExhaustedError("full"));
  }
  dispatcher_->Retry({0}, ticket_.get(), [](uint32_t) { return true; });
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(bad), asked);
}

TEST_F(DispatcherTest, ALateBatchIsHedgedWithinTheBudget) {
  options_.hedge_budget = 0.05;
  options_.min_deadline = absl::Minutes(1);  // nothing is ever overdue
  Place({{0, 1}});
  Plan({0}, 1);
  Start();
  for (int i = 0; i < 20; ++i) Settle();  // 800 batches: the budget is full
  mesh_.Hold(0);
  for (int i = 0; i < 4; ++i) {
    Exchange();  // hangs unless the other replica is asked
    ExpectEchoed();
  }
}

TEST_F(DispatcherTest, EndpointsOfOtherNumericsServeOnlyWhenNoneElseCan) {
  PlaceOfTwoNumerics();
  Plan({0}, 256);
  Exchange();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(0), 0);
  // Not because of a passing trouble.
  for (int i = 0; i < 3; ++i) {
    mesh_.Fail(1, absl::ResourceExhaustedError("full"));
    mesh_.Fail(1, absl::UnavailableError("reconnecting"));
  }
  Exchange();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(0), 0);
  EXPECT_EQ(dispatcher_->num_crossed_rows(), 0);
}

TEST_F(DispatcherTest, RowsCrossFromAnEndpointThatIsStuck) {
  options_.cross_after = absl::Milliseconds(80);
  PlaceOfTwoNumerics();
  Plan({0}, 1);
  Start();
  Settle();
  EXPECT_EQ(mesh_.num_sent(0), 0);
  mesh_.Hold(1);
  Exchange();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(0), 1);
  EXPECT_EQ(dispatcher_->num_crossed_rows(), 1);
}

// [endpoint] rows sent.
std::vector<size_t> RowsByEndpoint(const std::vector<FakeMesh::Sent>& sent) {
  std::vector<size_t> rows(2);
  for (const FakeMesh::Sent& batch : sent) {
    rows[batch.endpoint] += batch.num_rows;
  }
  return rows;
}

TEST_F(DispatcherTest, RowsThatMayMixAreSharedByAllReplicas) {
  PlaceOfTwoNumerics();
  Plan({0}, 256);
  may_mix_.assign(256, 1);
  Exchange();
  ExpectEchoed();
  EXPECT_THAT(RowsByEndpoint(mesh_.sent()), ElementsAre(128, 128));
  EXPECT_EQ(dispatcher_->num_crossed_rows(), 128);
  EXPECT_EQ(ticket_->crossed_tokens().size(), 128u);
}

TEST_F(DispatcherTest, RowsThatMayNotMixStayBesideThoseThatMay) {
  PlaceOfTwoNumerics();
  Plan({0}, 40);
  may_mix_.assign(40, 1);
  // Alone, at both ends of a piece, and in a row.
  const std::vector<uint32_t> exact = {0, 7, 15, 16, 20, 21, 22, 39};
  for (const uint32_t token : exact) may_mix_[token] = 0;
  Start();
  size_t crossed = 0;
  for (int i = 0; i < 40; ++i) {
    Exchange();
    ExpectEchoed();
    crossed += ticket_->crossed_tokens().size();
    for (const uint32_t token : ticket_->crossed_tokens()) {
      EXPECT_TRUE(may_mix_[token]) << token;
    }
  }
  EXPECT_GT(crossed, 0u);
  EXPECT_EQ(RowsByEndpoint(mesh_.sent())[0], crossed);
}

TEST_F(DispatcherTest, RowsThatMayMixCrossWithoutWaiting) {
  options_.cross_after = absl::Hours(1);
  options_.uncovered_timeout = absl::ZeroDuration();
  PlaceOfTwoNumerics();
  Plan({0}, 1);
  may_mix_ = {1};
  Start();
  Settle();
  mesh_.Hold(1);
  for (int i = 0; i < 4; ++i) {
    Exchange();
    ExpectEchoed();
  }
}

TEST_F(DispatcherTest, WhatMayMixFindsRoomAtAllReplicas) {
  PlaceOfTwoNumerics();
  Start();
  std::vector<uint16_t> replicas;
  dispatcher_->CountReplicas(0, &replicas, {0, 0});
  EXPECT_EQ(replicas[0], 1);
  dispatcher_->CountReplicas(0, &replicas, {0, 1});
  EXPECT_EQ(replicas[0], 2);
}

TEST_F(DispatcherTest, WhoLacksWhatItAnnouncedIsAskedOnce) {
  Place({{0, 1}});
  Plan({0}, 1);
  mesh_.Fail(0, absl::FailedPreconditionError("not hosted"));
  Start();
  for (int i = 0; i < 20; ++i) {
    Exchange();
    ExpectEchoed();
  }
  EXPECT_EQ(mesh_.num_sent(0), 1);
  Place({{0, 1}});
  Settle();
  EXPECT_GT(mesh_.num_sent(0), 1);
}

TEST_F(DispatcherTest, WeightsShiftRows) {
  auto placement = std::make_shared<Placement>(1, kNumExperts);
  placement->Add(0, 0, 0);
  placement->Add(0, 0, 1);
  placement->set_weight(1, 1000);
  table_.Set(std::move(placement));
  Plan({0}, 512);
  Exchange();
  ExpectEchoed();
  // What measures it, and no more.
  ASSERT_EQ(mesh_.num_sent(0), 1);
  for (const auto& sent : mesh_.sent()) {
    EXPECT_EQ(sent.num_rows, sent.endpoint == 0 ? 16 : 496);
  }
}

TEST_F(DispatcherTest, CreditHoldsRowsBack) {
  Place({{0}, {0}, {0}});
  Plan({0, 1, 2}, 1);
  mesh_.set_credit(2);
  Exchange();
  Exchange();
  ExpectEchoed();
  const auto sent = mesh_.sent();
  ASSERT_EQ(sent.size(), 3u);
  EXPECT_EQ(sent[0].num_rows, 3u);  // the credit was not known yet
  EXPECT_EQ(sent[1].num_rows, 2u);
  EXPECT_EQ(sent[2].num_rows, 1u);
}

TEST_F(DispatcherTest, OneBatchMayAlwaysBeInFlight) {
  Place({{0}});
  Plan({0}, 5);
  mesh_.set_credit(2);
  Exchange();
  Exchange();
  ExpectEchoed();
  EXPECT_EQ(mesh_.num_sent(0), 2);
}

// Answers come from a thread for each endpoint, about when batches become
// overdue, now and then with an error: all ways to race are taken.
TEST_F(DispatcherTest, NothingIsLostWhateverTheOrderOfAnswers) {
  options_.min_deadline = absl::Microseconds(20);
  options_.deadline_factor = 1;
  options_.hedge_budget = 1;
  options_.uncovered_timeout = absl::Minutes(5);
  options_.max_message_bytes = 16 * 8;
  Place({{0, 1}, {1, 2}, {2, 0}, {0, 1, 2}});
  Plan({0, 1, 2, 3}, 20, /*num_waves=*/2);
  Start();
  std::atomic<bool> stop = false;
  std::vector<std::thread> endpoints;
  for (int endpoint = 0; endpoint < 3; ++endpoint) {
    mesh_.Hold(endpoint);
    endpoints.emplace_back([&, endpoint] {
      std::minstd_rand random(endpoint + 1);
      int answered = 0;
      while (!stop) {
        if (mesh_.num_sent(endpoint) == answered) {
          std::this_thread::yield();
          continue;
        }
        answered = mesh_.num_sent(endpoint);
        absl::SleepFor(absl::Microseconds(random() % 100));
        mesh_.Release(endpoint, random() % 8 == 0
                                    ? absl::UnavailableError("gone")
                                    : absl::OkStatus());
      }
    });
  }
  for (int i = 0; i < 300; ++i) {
    hidden_[0] = static_cast<float>(i);
    Exchange();
    ExpectEchoed();
  }
  stop = true;
  for (std::thread& endpoint : endpoints) endpoint.join();
}

TEST_F(DispatcherTest, BatchesCarryTracesOfTheirRowsAlone) {
  Place({{0}, {1}});
  // Expert 0 has tokens 0 to 2; expert 1 has 3 to 8.
  plan_ = DispatchPlan();
  for (uint32_t token = 0; token < 9; ++token) {
    plan_.row_token.push_back(token);
    plan_.row_weight.push_back(1);
  }
  plan_.groups = {{0, 0, 3}, {1, 3, 9}};
  plan_.wave_groups = {0, 2};
  traced_ = {{0, 1, "a"}, {2, 4, "b"}, {4, 5, "c"},
             {5, 6, "d"}, {6, 7, "e"}, {7, 8, "f"}};
  for (int round = 0; round < 2; ++round) {
    const auto before = mesh_.sent().size();
    Exchange();
    const auto sent = mesh_.sent();
    ASSERT_EQ(sent.size(), before + 2);
    for (size_t i = before; i < sent.size(); ++i) {
      EXPECT_EQ(sent[i].traceparents,
                sent[i].endpoint == 0
                    ? (std::vector<std::string>{"a", "b"})
                    : (std::vector<std::string>{"b", "c", "d", "e"}));
    }
  }
  // Memory of batches is used again; what they carried is not.
  traced_.clear();
  Exchange();
  EXPECT_TRUE(mesh_.sent().back().traceparents.empty());
}

TEST_F(DispatcherTest, AnswersAfterItsEndAreNoHarm) {
  options_.hedge_budget = 0;
  Place({{0, 1}});
  Plan({0}, 1);
  Start();
  Settle();
  mesh_.Hold(0);
  for (int i = 0; i < 10; ++i) Exchange();
  ASSERT_GT(mesh_.num_sent(0), 0);
  dispatcher_.reset();
  ticket_.reset();
  mesh_.Release(0);
}

}  // namespace
}  // namespace expertmesh::router
