#include "router_service/dispatch/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <numeric>
#include <random>
#include <thread>

#include "tests/unit/router_service/dispatch/fake_mesh.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kHidden = 4;
constexpr int64_t kMaxTokens = 512;

// Endpoints echo tokens, so a row must equal its token wherever it went.
class DispatcherTest : public ::testing::Test {
 protected:
  DispatcherTest() {
    options_.hidden_size = kHidden;
    options_.max_tokens = kMaxTokens;
    options_.top_k = 2;
    options_.uncovered_timeout = absl::Milliseconds(100);
    for (size_t i = 0; i < hidden_.size(); ++i) {
      hidden_[i] = static_cast<float>(i);
    }
  }
  ~DispatcherTest() override {
    for (int endpoint = 0; endpoint < 4; ++endpoint) mesh_.Release(endpoint);
  }

  // `replicas[e]`: the endpoints that hold expert e of layer 0.
  void Place(const std::vector<std::vector<int>>& replicas) {
    auto placement = std::make_shared<Placement>(1, kNumExperts);
    for (size_t expert = 0; expert < replicas.size(); ++expert) {
      for (const int endpoint : replicas[expert]) {
        placement->Add(0, static_cast<int64_t>(expert), endpoint);
      }
    }
    table_.Set(std::move(placement));
  }

  // Every wave: tokens 0 … rows - 1 at each of `experts`.
  void Plan(const std::vector<int>& experts, int rows, int num_waves = 1) {
    plan_ = DispatchPlan();
    plan_.wave_groups = {0};
    for (int wave = 0; wave < num_waves; ++wave) {
      for (const int expert : experts) {
        const auto first = static_cast<uint32_t>(plan_.row_token.size());
        for (int token = 0; token < rows; ++token) {
          plan_.row_token.push_back(token);
          plan_.row_weight.push_back(1);
        }
        plan_.groups.push_back({expert, first, first + rows});
      }
      plan_.wave_groups.push_back(static_cast<uint32_t>(plan_.groups.size()));
    }
  }

  // The same, with the weights and orders that combine goes by. top_k is how
  // many experts there are.
  void PlanForCombine(const std::vector<int>& experts, int rows,
                      int num_waves = 1) {
    Plan(experts, rows, num_waves);
    const size_t top_k = experts.size() * num_waves;
    options_.top_k = static_cast<int64_t>(top_k);
    for (int token = 0; token < rows; ++token) {
      std::vector<std::pair<int, uint32_t>> by_expert;
      for (uint32_t row = 0; row < plan_.row_token.size(); ++row) {
        plan_.row_weight[row] = 0.1f * static_cast<float>(row + 1);
        if (plan_.row_token[row] == static_cast<uint32_t>(token)) {
          by_expert.emplace_back(plan_.ExpertOf(row), row);
        }
      }
      std::sort(by_expert.begin(), by_expert.end());
      for (const auto& [expert, row] : by_expert) {
        plan_.token_rows.push_back(static_cast<int32_t>(row));
      }
    }
  }

  void Start() {
    dispatcher_ = std::make_unique<Dispatcher>(options_, &table_, &mesh_);
    ticket_ = std::make_unique<DispatchTicket>(options_);
  }
  void Exchange() {
    if (dispatcher_ == nullptr) Start();
    dispatcher_->BeginStep();
    ExchangeInStep();
  }
  void ExchangeInStep() {
    dispatcher_->Begin(0, hidden_.data(), plan_, ticket_.get());
    dispatcher_->Finish(ticket_.get(), must_wait_);
  }
  // So many exchanges that the endpoints' times are known.
  void Settle() {
    for (int i = 0; i < 40; ++i) {
      Exchange();
      ExpectEchoed();
    }
  }

  void ExpectEchoed() {
    ASSERT_TRUE(ticket_->failures().empty()) << ticket_->failures()[0].status;
    for (size_t row = 0; row < plan_.row_token.size(); ++row) {
      const auto* values =
          reinterpret_cast<const float*>(ticket_->outputs().rows) +
          row * kHidden;
      for (int64_t i = 0; i < kHidden; ++i) {
        ASSERT_EQ(values[i], hidden_[plan_.row_token[row] * kHidden + i])
            << "row " << row;
      }
    }
  }
  // In plain loops, from what endpoints echo.
  void ExpectCombined() {
    ASSERT_TRUE(ticket_->failures().empty()) << ticket_->failures()[0].status;
    const int64_t top_k = options_.top_k;
    const auto num_tokens =
        static_cast<int64_t>(plan_.token_rows.size()) / top_k;
    std::vector<float> y(num_tokens * kHidden);
    Combine(plan_, top_k, ticket_->outputs(), kHidden, 0, num_tokens, y.data());
    for (int64_t token = 0; token < num_tokens; ++token) {
      for (int64_t i = 0; i < kHidden; ++i) {
        std::map<int64_t, float> sums;
        for (int64_t place = 0; place < top_k; ++place) {
          const int32_t row = plan_.token_rows[token * top_k + place];
          sums[plan_.ExpertOf(row) / options_.combine_group_size] +=
              plan_.row_weight[row] * hidden_[token * kHidden + i];
        }
        float expected = 0;
        for (const auto& [group, sum] : sums) expected += sum;
        ASSERT_EQ(y[token * kHidden + i], expected) << token << ", " << i;
      }
    }
  }
  void PlaceAdding(const std::vector<std::vector<int>>& replicas) {
    Place(replicas);
    auto placement = std::make_shared<Placement>(*table_.Get());
    for (int endpoint = 0; endpoint < 4; ++endpoint) {
      placement->set_adds_rows(endpoint);
    }
    table_.Set(std::move(placement));
  }
  size_t NumSums() {
    size_t sums = 0;
    for (const auto& sent : mesh_.sent()) sums += sent.num_sums;
    return sums;
  }

  absl::StatusCode FailureCode() const {
    return ticket_->failures().empty() ? absl::StatusCode::kOk
                                       : ticket_->failures()[0].status.code();
  }

  static constexpr int64_t kNumExperts = 4;
  DispatcherOptions options_;
  DispatchPlan plan_;
  std::vector<float> hidden_ = std::vector<float>(kMaxTokens * kHidden);
  PlacementTable table_{std::make_shared<Placement>(1, kNumExperts)};
  FakeMesh mesh_;
  std::function<bool(uint32_t)> must_wait_ = [](uint32_t) { return true; };
  std::unique_ptr<DispatchTicket> ticket_;
  std::unique_ptr<Dispatcher> dispatcher_;
};

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
  Exchange();
  const absl::Time start = absl::Now();
  for (int layer = 0; layer < 5; ++layer) {
    ExchangeInStep();
    EXPECT_EQ(FailureCode(), absl::StatusCode::kUnavailable);
  }
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(300));
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
  auto placement = std::make_shared<Placement>(1, kNumExperts);
  placement->Add(0, 0, /*endpoint=*/0, /*is_preferred=*/false);
  placement->Add(0, 0, /*endpoint=*/1, /*is_preferred=*/true);
  table_.Set(std::move(placement));
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
  auto placement = std::make_shared<Placement>(1, kNumExperts);
  placement->Add(0, 0, /*endpoint=*/0, /*is_preferred=*/false);
  placement->Add(0, 0, /*endpoint=*/1, /*is_preferred=*/true);
  table_.Set(std::move(placement));
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

// --- Sums. -----------------------------------------------------------------

TEST_F(DispatcherTest, RowsOfAGroupComeBackAsTheirSum) {
  options_.combine_group_size = 4;
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 2, 3}, 3);
  Exchange();
  ExpectCombined();
  const auto sent = mesh_.sent();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].num_rows, 12u);
  EXPECT_EQ(sent[0].num_sums, 3u);
}

// The service would refuse the message of all for the fault of one.
TEST_F(DispatcherTest, WeightsThatAreNotFiniteStayHere) {
  options_.combine_group_size = 4;
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 2, 3}, 3);
  plan_.row_weight[4] = NAN;  // of token 1
  Exchange();
  const auto sent = mesh_.sent();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].num_rows, 12u);
  EXPECT_EQ(sent[0].num_sums, 2u);
}

TEST_F(DispatcherTest, WhoCannotAddIsNotAskedTo) {
  options_.combine_group_size = 4;
  Place({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 2, 3}, 3);
  Exchange();
  ExpectCombined();
  EXPECT_EQ(NumSums(), 0u);
}

TEST_F(DispatcherTest, AGroupOnSeveralEndpointsComesBackAsRows) {
  for (const auto& [group_size, sums] :
       {std::pair(1, 0u), {2, 6u}, {3, 0u}, {4, 0u}}) {
    options_.combine_group_size = group_size;
    PlaceAdding({{0}, {0}, {1}, {1}});
    PlanForCombine({0, 1, 2, 3}, 3);
    Start();
    const size_t before = NumSums();
    Exchange();
    ExpectCombined();
    EXPECT_EQ(NumSums() - before, sums) << group_size;
  }
}

TEST_F(DispatcherTest, ASumIsAskedForOnlyWhereItIsSmaller) {
  options_.wire_dtype = DType::kBF16;
  options_.combine_group_size = 2;  // two rows of bf16 are no larger
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 2, 3}, 3);
  Exchange();
  EXPECT_EQ(NumSums(), 0u);
}

TEST_F(DispatcherTest, AScaleInFrontOfEachRowCountsToo) {
  // A sum has 16 bytes, a row 8: three are larger than it.
  options_.wire_dtype = DType::kInt8;
  options_.combine_group_size = 4;
  for (const int rows : {2, 3}) {
    PlaceAdding({{0}, {0}, {0}, {0}});
    std::vector<int> experts(rows);
    std::iota(experts.begin(), experts.end(), 0);
    PlanForCombine(experts, 5);
    Start();
    const size_t before = NumSums();
    Exchange();
    EXPECT_EQ(NumSums() - before, rows == 3 ? 5u : 0u);
  }
}

TEST_F(DispatcherTest, RowsOfSeveralWavesComeBackAsRows) {
  options_.combine_group_size = 4;
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 2}, 3, /*num_waves=*/2);
  Exchange();
  ExpectCombined();
  EXPECT_EQ(NumSums(), 0u);
}

TEST_F(DispatcherTest, SumsSurviveMessagesInParts) {
  options_.combine_group_size = 4;
  options_.max_message_bytes = 2 * 16;  // two tokens
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 3}, 41);
  Exchange();
  ExpectCombined();
  EXPECT_EQ(mesh_.num_sent(0), 21);
  EXPECT_EQ(NumSums(), 41u);
}

TEST_F(DispatcherTest, ALostBatchGoesElsewhereInPartsAsRows) {
  options_.uncovered_timeout = absl::Minutes(5);
  options_.combine_group_size = 4;
  PlaceAdding({{0}, {0}});
  PlanForCombine({0, 1}, 2);
  Start();
  mesh_.Hold(0);
  std::thread endpoint([&] {
    mesh_.AwaitSent(0, 1);
    PlaceAdding({{1}, {2}});
    mesh_.Release(0, absl::UnavailableError("gone"));
  });
  Exchange();
  endpoint.join();
  ExpectCombined();
  const auto sent = mesh_.sent();
  ASSERT_EQ(sent.size(), 3u);
  EXPECT_EQ(sent[0].num_sums, 2u);
  EXPECT_EQ(sent[1].num_sums + sent[2].num_sums, 0u);
}

// Endpoint 0 has both rows of each token and hangs; 1 answers one of them, and
// 2, asked for the other, hangs as well. Then 0 answers with sums of both.
TEST_F(DispatcherTest, ALateSumStandsForRowsThatOthersHaveGiven) {
  options_.hedge_budget = 0;
  options_.uncovered_timeout = absl::Minutes(5);
  options_.combine_group_size = 4;
  PlanForCombine({0, 1}, 2);
  Start();
  for (const int endpoint : {1, 2, 0}) {
    PlaceAdding({{endpoint}, {endpoint}});
    for (int i = 0; i < 40; ++i) Exchange();
  }
  const size_t settled = mesh_.sent().size();
  mesh_.Hold(0);
  mesh_.Hold(2);
  std::thread operator_thread([&] {
    mesh_.AwaitSent(0, 41);
    PlaceAdding({{0, 1}, {0, 2}});
    mesh_.AwaitSent(1, 41);
    mesh_.AwaitSent(2, 41);
    mesh_.Release(0);
  });
  Exchange();
  operator_thread.join();
  ExpectCombined();
  const auto sent = mesh_.sent();
  ASSERT_EQ(sent.size(), settled + 3);
  EXPECT_EQ(sent[settled].num_sums, 2u);
  EXPECT_EQ(sent[settled + 1].num_sums + sent[settled + 2].num_sums, 0u);
}

// As above, but the sums are bad: those rows that 1 has given go to 1 again,
// not to 0, which added them up.
TEST_F(DispatcherTest, WhoGaveABadSumIsNotAskedForItsRows) {
  options_.hedge_budget = 0;
  options_.uncovered_timeout = absl::Minutes(5);
  options_.combine_group_size = 4;
  PlanForCombine({0, 1}, 2);
  Start();
  for (const int endpoint : {1, 2, 0}) {
    PlaceAdding({{endpoint}, {endpoint}});
    for (int i = 0; i < 40; ++i) Exchange();
  }
  mesh_.Hold(0);
  mesh_.Hold(2);
  std::thread operator_thread([&] {
    mesh_.AwaitSent(0, 41);
    PlaceAdding({{0, 1}, {0, 2}});
    mesh_.AwaitSent(1, 41);
    mesh_.AwaitSent(2, 41);
    mesh_.Release(0);
  });
  hidden_[2] = HUGE_VALF;  // token 0
  Exchange();
  operator_thread.join();
  mesh_.Release(2);
  for (const int endpoint : {0, 2}) mesh_.Hold(endpoint, false);
  std::vector<uint32_t> rows;
  ticket_->TakeBadRows(0, &rows);
  EXPECT_THAT(rows, ElementsAre(0, 2));
  hidden_[2] = 1;
  dispatcher_->Retry(rows, ticket_.get(), must_wait_);
  EXPECT_EQ(mesh_.num_sent(0), 41);
  EXPECT_EQ(mesh_.num_sent(1), 42);
  EXPECT_EQ(mesh_.num_sent(2), 42);
}

TEST_F(DispatcherTest, RowsOfABadSumMayComeFromTheSameEndpoint) {
  options_.combine_group_size = 2;
  PlaceAdding({{0}, {0}, {0}});
  PlanForCombine({0, 1, 2}, 2);
  hidden_[kHidden + 2] = HUGE_VALF;  // token 1
  Exchange();
  std::vector<uint32_t> rows;
  ticket_->TakeBadRows(1, &rows);
  hidden_[kHidden + 2] = 1;
  dispatcher_->Retry(rows, ticket_.get(), must_wait_);
  ExpectCombined();
  EXPECT_EQ(mesh_.num_sent(0), 2);
}

TEST_F(DispatcherTest, WhatIsAskedForAgainComesAsRows) {
  options_.combine_group_size = 2;
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 2, 3}, 3);
  Exchange();
  EXPECT_EQ(NumSums(), 6u);
  std::vector<uint32_t> rows;
  ticket_->ForgetSums(1, &rows);
  EXPECT_THAT(rows, ElementsAre(1, 4, 7, 10));
  // Meanwhile the gate has chosen again: other weights.
  for (const uint32_t row : rows) plan_.row_weight[row] *= 1.7f;
  dispatcher_->Retry(rows, ticket_.get(), must_wait_);
  EXPECT_EQ(NumSums(), 6u);
  ExpectCombined();
  // The next layer may have sums again.
  Exchange();
  EXPECT_EQ(NumSums(), 12u);
  ExpectCombined();
}

TEST_F(DispatcherTest, OfABadSumAllRowsAreTaken) {
  options_.combine_group_size = 2;
  PlaceAdding({{0}, {0}, {0}});
  PlanForCombine({0, 1, 2}, 2);
  hidden_[kHidden + 2] = HUGE_VALF;  // token 1
  Exchange();
  std::vector<uint32_t> rows;
  ticket_->TakeBadRows(0, &rows);
  EXPECT_THAT(rows, ElementsAre());
  ticket_->TakeBadRows(1, &rows);
  EXPECT_THAT(rows, ElementsAre(1, 3, 5));
  // As rows, they are bad each for itself.
  dispatcher_->Retry(rows, ticket_.get(), must_wait_);
  rows.clear();
  ticket_->TakeBadRows(1, &rows);
  EXPECT_THAT(rows, ElementsAre(1, 3, 5));
}

}  // namespace
}  // namespace expertmesh::router
