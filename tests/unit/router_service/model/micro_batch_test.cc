#include "router_service/model/micro_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;

// Three sequences of 1, 1 and 4 tokens.
TokenBatch Batch() {
  TokenBatch batch;
  batch.token_ids = {10, 20, 30, 31, 32, 33};
  batch.positions = {7, 3, 0, 1, 2, 3};
  batch.slot_mapping = {107, 203, 300, 301, 302, 303};
  batch.seq_starts = {0, 1, 2, 6};
  batch.block_tables = {1, 2, 3, 4, 5, 6};
  batch.max_blocks = 2;
  batch.policy.assign(6, OverflowPolicy::kWait);
  batch.policy[4] = OverflowPolicy::kDrop;
  return batch;
}

TEST(SliceBatchTest, CutsASequenceInTwo) {
  TokenBatch part;
  SliceBatch(Batch(), 0, 3, &part);
  EXPECT_THAT(part.token_ids, ElementsAre(10, 20, 30));
  EXPECT_THAT(part.seq_starts, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(part.block_tables, ElementsAre(1, 2, 3, 4, 5, 6));
  SliceBatch(Batch(), 3, 6, &part);
  EXPECT_THAT(part.token_ids, ElementsAre(31, 32, 33));
  EXPECT_THAT(part.positions, ElementsAre(1, 2, 3));
  EXPECT_THAT(part.slot_mapping, ElementsAre(301, 302, 303));
  EXPECT_THAT(part.seq_starts, ElementsAre(0, 3));
  EXPECT_THAT(part.block_tables, ElementsAre(5, 6));
  EXPECT_EQ(part.max_blocks, 2);
  EXPECT_EQ(part.policy[1], OverflowPolicy::kDrop);
  EXPECT_TRUE(part.may_mix.empty());
}

TEST(SliceBatchTest, KeepsWhichTokensMayMix) {
  TokenBatch whole = Batch();
  whole.may_mix = {0, 0, 1, 1, 0, 1};
  TokenBatch part;
  SliceBatch(whole, 2, 5, &part);
  EXPECT_THAT(part.may_mix, ElementsAre(1, 1, 0));
}

TEST(SliceBatchTest, KeepsWhichTokensAreTraced) {
  TokenBatch whole = Batch();
  whole.traced = {{0, 1, "a"}, {1, 4, "b"}, {4, 6, "c"}};
  TokenBatch part;
  SliceBatch(whole, 2, 5, &part);
  ASSERT_EQ(part.traced.size(), 2u);
  EXPECT_EQ(part.traced[0].traceparent, "b");
  EXPECT_EQ(part.traced[0].first, 0);
  EXPECT_EQ(part.traced[0].last, 2);
  EXPECT_EQ(part.traced[1].traceparent, "c");
  EXPECT_EQ(part.traced[1].first, 2);
  EXPECT_EQ(part.traced[1].last, 3);
  SliceBatch(Batch(), 2, 5, &part);
  EXPECT_TRUE(part.traced.empty());
}

TEST(SliceBatchTest, AllOfItIsTheSame) {
  const TokenBatch whole = Batch();
  TokenBatch part;
  SliceBatch(whole, 0, 6, &part);
  EXPECT_EQ(part.token_ids, whole.token_ids);
  EXPECT_EQ(part.seq_starts, whole.seq_starts);
  EXPECT_EQ(part.block_tables, whole.block_tables);
}

// Steps of `tokens` that take `one` or `two` seconds; how many ran as two.
int StepsInTwo(MicroBatchPolicy* policy, int64_t tokens, double one,
               double two) {
  int in_two = 0;
  for (int step = 0; step < 200; ++step) {
    const int count = policy->Choose(tokens);
    in_two += count == 2;
    policy->Observe(tokens, count, absl::Seconds(count == 1 ? one : two));
  }
  return in_two;
}

TEST(MicroBatchPolicyTest, TakesWhatProvesFasterForEachMagnitude) {
  MicroBatchPolicy policy(0);
  EXPECT_GT(StepsInTwo(&policy, 512, 1.0, 0.6), 185);
  EXPECT_LT(StepsInTwo(&policy, 16, 1.0, 1.1), 15);
  EXPECT_LT(StepsInTwo(&policy, 64, 1.0, 0.99), 15);  // within the noise
  EXPECT_GT(StepsInTwo(&policy, 512, 1.0, 0.6), 185);
}

TEST(MicroBatchPolicyTest, FollowsAChange) {
  MicroBatchPolicy policy(0);
  EXPECT_GT(StepsInTwo(&policy, 512, 1.0, 0.6), 185);
  StepsInTwo(&policy, 512, 1.0, 1.5);
  EXPECT_LT(StepsInTwo(&policy, 512, 1.0, 1.5), 15);
}

// Once the first step in two was late, two were not taken for hundreds of
// steps, though they would have won.
TEST(MicroBatchPolicyTest, AStepThatWasLateDecidesNothing) {
  MicroBatchPolicy policy(0);
  bool any_in_two = false;
  int in_two = 0;
  for (int step = 0; step < 200; ++step) {
    const int count = policy.Choose(512);
    const bool is_first_in_two = count == 2 && !any_in_two;
    any_in_two |= count == 2;
    in_two += count == 2;
    const double seconds = is_first_in_two || step % 10 == 0 ? 10.0 : 1.0;
    policy.Observe(512, count,
                   absl::Seconds(count == 1 ? seconds : 0.6 * seconds));
  }
  EXPECT_GT(in_two, 185);
}

TEST(MicroBatchPolicyTest, AFixedNumberIsKeptWhereThereAreTokensForIt) {
  MicroBatchPolicy two(2);
  EXPECT_EQ(two.Choose(2), 2);
  EXPECT_EQ(two.Choose(1), 1);
  MicroBatchPolicy one(1);
  EXPECT_EQ(one.Choose(512), 1);
}

}  // namespace
}  // namespace expertmesh::router
