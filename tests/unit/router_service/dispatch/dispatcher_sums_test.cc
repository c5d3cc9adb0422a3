#include "router_service/dispatch/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <thread>
#include <utility>

#include "tests/unit/router_service/dispatch/dispatcher_fixture.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;

// Endpoints that add up the rows of a group where they are asked to.
class DispatcherSumsTest : public DispatcherTest {
 protected:
  // As Plan, with the weights and orders that combine goes by. top_k is how
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
};

TEST_F(DispatcherSumsTest, RowsOfAGroupComeBackAsTheirSum) {
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
TEST_F(DispatcherSumsTest, WeightsThatAreNotFiniteStayHere) {
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

TEST_F(DispatcherSumsTest, WhoCannotAddIsNotAskedTo) {
  options_.combine_group_size = 4;
  Place({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 2, 3}, 3);
  Exchange();
  ExpectCombined();
  EXPECT_EQ(NumSums(), 0u);
}

TEST_F(DispatcherSumsTest, AGroupOnSeveralEndpointsComesBackAsRows) {
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

TEST_F(DispatcherSumsTest, ASumIsAskedForOnlyWhereItIsSmaller) {
  options_.wire_dtype = DType::kBF16;
  options_.combine_group_size = 2;  // two rows of bf16 are no larger
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 2, 3}, 3);
  Exchange();
  EXPECT_EQ(NumSums(), 0u);
}

TEST_F(DispatcherSumsTest, AScaleInFrontOfEachRowCountsToo) {
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

TEST_F(DispatcherSumsTest, RowsOfSeveralWavesComeBackAsRows) {
  options_.combine_group_size = 4;
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 2}, 3, /*num_waves=*/2);
  Exchange();
  ExpectCombined();
  EXPECT_EQ(NumSums(), 0u);
}

TEST_F(DispatcherSumsTest, SumsSurviveMessagesInParts) {
  options_.combine_group_size = 4;
  options_.max_message_bytes = 2 * 16;  // two tokens
  PlaceAdding({{0}, {0}, {0}, {0}});
  PlanForCombine({0, 1, 3}, 41);
  Exchange();
  ExpectCombined();
  EXPECT_EQ(mesh_.num_sent(0), 21);
  EXPECT_EQ(NumSums(), 41u);
}

TEST_F(DispatcherSumsTest, ALostBatchGoesElsewhereInPartsAsRows) {
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
TEST_F(DispatcherSumsTest, ALateSumStandsForRowsThatOthersHaveGiven) {
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
TEST_F(DispatcherSumsTest, WhoGaveABadSumIsNotAskedForItsRows) {
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

TEST_F(DispatcherSumsTest, RowsOfABadSumMayComeFromTheSameEndpoint) {
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

TEST_F(DispatcherSumsTest, WhatIsAskedForAgainComesAsRows) {
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

TEST_F(DispatcherSumsTest, OfABadSumAllRowsAreTaken) {
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
