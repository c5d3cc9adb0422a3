#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/allocation_counter.h"
#include "tests/unit/expert_service/execution/executor_fixture.h"

namespace expertmesh::expert {
namespace {

using ::testing::HasSubstr;

class BrokenFfn final : public GroupedFfn {
 public:
  absl::Status Start(const GroupedRows&) override {
    return absl::InternalError("device lost");
  }
};

// Takes 30 ms by the clock.
class SlowFfn final : public GroupedFfn {
 public:
  explicit SlowFfn(FakeClock* clock) : clock_(clock) {}
  absl::Status Start(const GroupedRows&) override {
    clock_->Advance(absl::Milliseconds(30));
    return absl::OkStatus();
  }

 private:
  FakeClock* const clock_;
};

using ExpertExecutorTest = ExecutorFixture;

TEST_F(ExpertExecutorTest, EachBatchGetsItsOwnRowsWhateverItIsMergedWith) {
  // All wait before the executor starts, so that they merge.
  Add(a_, 1, DType::kF32, {0, 2}, {2, 3});
  Add(b_, 1, DType::kF32, {0, 1, 2}, {1, 0, 4});
  Add(a_, 1, DType::kF32, {1}, {5});
  Add(b_, 0, DType::kF32, {1, 2}, {1, 1});
  Start();
  ExpectAllRight();
  executor_.reset();
  EXPECT_EQ(batch_rows_.Collect().histogram.sample_count, 2u);
  EXPECT_EQ(rows_.Value(), 17);
  EXPECT_EQ(load_.rows(1, 0), 3u);
  EXPECT_EQ(load_.rows(1, 1), 5u);
  EXPECT_EQ(load_.rows(1, 2), 7u);
  EXPECT_EQ(load_.rows(0, 1), 1u);
  EXPECT_EQ(load_.runs(), 3u + 2u);  // merged: once for each expert and layer
}

TEST_F(ExpertExecutorTest, ElementTypesRunApart) {
  Add(a_, 0, DType::kF32, {0, 1}, {2, 2});
  Add(b_, 0, DType::kBF16, {0, 1}, {3, 1});
  Add(a_, 0, DType::kBF16, {1, 2}, {1, 1});
  Add(b_, 0, DType::kInt8, {0, 2}, {4, 1});
  Add(a_, 0, DType::kInt8, {0}, {2});
  Start();
  ExpectAllRight();
}

TEST_F(ExpertExecutorTest, MoreRowsThanTheWorkspaceRunInChunks) {
  Add(a_, 0, DType::kF32, {0, 1, 2}, {3, 50, 7});
  Add(b_, 0, DType::kF32, {1}, {16});
  Add(b_, 0, DType::kF32, {1, 2}, {17, 1});
  Add(b_, 0, DType::kInt8, {1, 2}, {33, 2});
  Start();
  ExpectAllRight();
}

TEST_F(ExpertExecutorTest, RowsAreAddedUpWhereTheBatchAsks) {
  // Alone, and alone in one chunk and in several.
  for (const std::vector<uint32_t>& rows :
       std::vector<std::vector<uint32_t>>{{1, 1, 1}, {5, 4, 7}, {30, 9, 25}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kInt8}) {
      Add(a_, 0, dtype, {0, 1, 2}, rows, 1);
      Add(a_, 1, dtype, {0, 1, 2}, rows, 3);
    }
  }
  // Merged, beside one that wants rows.
  for (int i = 0; i < 3; ++i) {
    Add(b_, 1, DType::kF32, {0, 2}, {3, 4}, 2);
    Add(a_, 1, DType::kF32, {0, 1}, {2, 6});
    Add(a_, 1, DType::kBF16, {1, 2}, {9, 1}, 4);
  }
  Start();
  ExpectAllRight();
}

TEST_F(ExpertExecutorTest, ABatchWithoutRowsIsAnsweredWithNone) {
  TestWork* work = Add(a_, 0, DType::kF32, {}, {});
  Start();
  EXPECT_TRUE(work->Await().ok());
  EXPECT_FALSE(work->has_rows());
}

TEST_F(ExpertExecutorTest, AMissingExpertFailsItsBatchOnly) {
  TestWork* good = Add(a_, 1, DType::kF32, {2}, {3});
  TestWork* missing = Add(b_, 1, DType::kF32, {2, 3}, {1, 1});
  Start();
  EXPECT_TRUE(good->Await().ok());
  EXPECT_EQ(good->Bytes(), good->Expected(weights_, *reference_ffn_));
  const absl::Status status = missing->Await();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "expert 3 of layer 1 is not loaded here");
  EXPECT_FALSE(missing->has_rows());
  EXPECT_EQ(load_.rows(1, 2), 3u);
}

TEST_F(ExpertExecutorTest, ADeviceFaultIsTheBatchesError) {
  BrokenFfn broken;
  TestWork* work = Add(a_, 1, DType::kF32, {2}, {3});
  Start(&broken);
  EXPECT_EQ(work->Await().code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(work->has_rows());
  EXPECT_EQ(load_.rows(1, 2), 0u);
  executor_.reset();
}

TEST_F(ExpertExecutorTest, CountsTheTimeItComputes) {
  SlowFfn slow(&clock_);
  TestWork* first = Add(a_, 0, DType::kF32, {0}, {2});
  clock_.Advance(absl::Milliseconds(500));  // waiting is no work
  TestWork* second = Add(a_, 1, DType::kF32, {0}, {2});
  Start(&slow);
  EXPECT_TRUE(first->Await().ok());
  EXPECT_TRUE(second->Await().ok());
  EXPECT_EQ(load_.busy_us(), 60'000u);
  executor_.reset();
}

TEST_F(ExpertExecutorTest, AnExpiredBatchIsAnsweredAndNotRun) {
  TestWork late(0, DType::kF32, {0}, {2}, 1);
  late.timeout = absl::Milliseconds(20);
  ASSERT_TRUE(queue_.Add(a_, &late).ok());
  clock_.Advance(absl::Milliseconds(30));
  TestWork* in_time = Add(a_, 0, DType::kF32, {0}, {2});
  Start();
  EXPECT_TRUE(in_time->Await().ok());
  EXPECT_EQ(late.Await().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(late.timing().queued, absl::Milliseconds(30));
  EXPECT_EQ(load_.rows(0, 0), 2u);
}

TEST_F(ExpertExecutorTest, EndsAfterAnsweringWhatIsQueued) {
  for (int i = 0; i < 20; ++i) Add(a_, i % 2, DType::kF32, {0, 1}, {9, 9});
  Start();
  executor_.reset();
  ExpectAllRight();
}

TEST_F(ExpertExecutorTest, SteadyStateAllocatesNothing) {
  TestWork one(0, DType::kF32, {0, 1, 2}, {4, 4, 4}, 1);
  TestWork two(0, DType::kBF16, {0, 2}, {2, 40}, 2);
  two.AddUp(5, 3);
  Start();
  const auto run_both = [&] {
    for (TestWork* work : {&one, &two}) {
      work->Reset();
      EXPECT_TRUE(queue_.Add(a_, work).ok());
    }
    EXPECT_TRUE(one.Await().ok());
    EXPECT_TRUE(two.Await().ok());
  };
  for (int i = 0; i < 20; ++i) run_both();
  const int64_t before = NumAllocations();
  for (int i = 0; i < 50; ++i) run_both();
  EXPECT_EQ(NumAllocations(), before);
}

}  // namespace
}  // namespace expertmesh::expert
