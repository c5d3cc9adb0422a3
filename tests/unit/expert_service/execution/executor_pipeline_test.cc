// The executor with a device that takes two calls at a time.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <thread>
#include <vector>

#include "tests/support/allocation_counter.h"
#include "tests/unit/expert_service/execution/executor_fixture.h"

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;

// Computes when a call is finished, on memory of its own only; can be held
// back, and can break.
class DeviceFfn final : public GroupedFfn {
 public:
  DeviceFfn(GroupedFfn* inner, FakeClock* clock)
      : inner_(*inner), clock_(*clock) {
    for (Call& call : calls_) {
      call.experts.reserve(kExperts);
      call.offsets.reserve(kExperts + 1);
    }
  }

  int max_started() const override { return static_cast<int>(calls_.size()); }
  bool takes_any_memory() const override { return false; }
  RowBuffer NewRowBuffer(size_t bytes) override {
    RowBuffer buffer = GroupedFfn::NewRowBuffer(bytes);
    buffers_.push_back(buffer.get());
    return buffer;
  }

  absl::Status Start(const GroupedRows& rows) override {
    MutexLock lock(&mutex_);
    EXPECT_LT(started_ - finished_, max_started());
    if (started_ >= breaks_at_) return absl::InternalError("device lost");
    Call& call = calls_[started_ % calls_.size()];
    call.rows = rows;
    call.experts.assign(rows.experts.begin(), rows.experts.end());
    call.offsets.assign(rows.group_offsets.begin(), rows.group_offsets.end());
    call.rows.experts = call.experts;
    call.rows.group_offsets = call.offsets;
    ExpectOwnBuffers(call);
    ++started_;
    changed_.NotifyAll();
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [this] { return finished_ < allowed_; });
    EXPECT_LT(finished_, started_);
    clock_.Advance(absl::Milliseconds(30));
    const int index = finished_++;
    if (index >= breaks_at_) return absl::InternalError("device lost");
    return inner_.Run(calls_[index % calls_.size()].rows);
  }

  // Lets so many calls finish, of all that ever were.
  void Allow(int calls) {
    MutexLock lock(&mutex_);
    allowed_ = calls;
    changed_.NotifyAll();
  }
  void AllowAll() { Allow(std::numeric_limits<int>::max()); }
  // Calls from this one on fail.
  void BreakAt(int call) {
    MutexLock lock(&mutex_);
    breaks_at_ = call;
  }
  void AwaitStarted(int calls) {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [&] { return started_ >= calls; });
  }

 private:
  struct Call {
    GroupedRows rows;
    std::vector<const LoadedExpert*> experts;
    std::vector<uint32_t> offsets;
  };

  void ExpectOwnBuffers(const Call& call) const {
    const auto count = [this](const void* data) {
      return std::count(buffers_.begin(), buffers_.end(), data);
    };
    EXPECT_EQ(count(call.rows.x), 1);
    EXPECT_EQ(count(call.rows.y), 1);
    if (started_ == finished_) return;
    const Call& other = calls_[(started_ + 1) % calls_.size()];
    EXPECT_NE(call.rows.x, other.rows.x);
    EXPECT_NE(call.rows.y, other.rows.y);
  }

  GroupedFfn& inner_;
  FakeClock& clock_;
  std::vector<const void*> buffers_;
  Mutex mutex_;
  CondVar changed_;
  std::array<Call, 2> calls_;
  int started_ = 0;
  int finished_ = 0;
  int allowed_ = 0;
  int breaks_at_ = std::numeric_limits<int>::max();
};

class ExecutorPipelineTest : public ExecutorFixture {
 protected:
  ~ExecutorPipelineTest() override {
    device_.AllowAll();
    executor_.reset();
  }

  DeviceFfn device_{ffn_.get(), &clock_};
};

TEST_F(ExecutorPipelineTest, TheNextBatchStartsWhileOneRuns) {
  TestWork* first = Add(a_, 0, DType::kF32, {0, 1}, {2, 3});
  TestWork* second = Add(a_, 1, DType::kBF16, {1, 2}, {3, 1});
  Start(&device_);
  device_.AwaitStarted(2);
  EXPECT_FALSE(first->is_finished());
  EXPECT_EQ(queue_.WaitingRows(), 0);
  EXPECT_EQ(queue_.PendingRows(), 9);
  device_.Allow(1);
  EXPECT_TRUE(first->Await().ok());
  EXPECT_FALSE(second->is_finished());
  while (queue_.PendingRows() > 4) std::this_thread::yield();
  device_.Allow(2);
  ExpectAllRight();
  while (queue_.PendingRows() > 0) std::this_thread::yield();
}

TEST_F(ExecutorPipelineTest, ABatchThatComesIsNotKeptWaitingByOneThatRuns) {
  Add(a_, 0, DType::kF32, {0}, {2});
  Start(&device_);
  device_.AwaitStarted(1);
  TestWork* next = Add(b_, 0, DType::kF32, {0}, {2});
  device_.Allow(1);  // the second is found as soon as the first is answered
  device_.AwaitStarted(2);
  EXPECT_TRUE(works_[0]->Await().ok());
  EXPECT_FALSE(next->is_finished());
  device_.AllowAll();
  ExpectAllRight();
}

TEST_F(ExecutorPipelineTest, RepliesComeInTheOrderOfTheCalls) {
  device_.AllowAll();
  for (uint32_t i = 0; i < 12; ++i) {
    // One call, several of one type, and one of each type.
    Add(a_, i % 2, DType::kF32, {0, 2}, {1 + i % 3, 40 * (i % 2)}, i % 3);
    Add(b_, i % 2, i % 4 == 0 ? DType::kInt8 : DType::kBF16, {1, 2}, {9, i});
  }
  Start(&device_);
  ExpectAllRight();
  executor_.reset();
  // The streams' works run in their order, layer by layer.
  for (size_t i = 4; i < works_.size(); ++i) {
    EXPECT_LT(works_[i - 4]->place(), works_[i]->place()) << i;
  }
  EXPECT_EQ(queue_.PendingRows(), 0);
}

TEST_F(ExecutorPipelineTest, WhatNeedsNoDeviceIsAnsweredAtOnce) {
  TestWork late(0, DType::kF32, {0}, {2}, 1);
  late.timeout = absl::Milliseconds(20);
  TestWork* running = Add(a_, 0, DType::kF32, {0}, {2});
  TestWork* missing = Add(b_, 1, DType::kF32, {3}, {2});
  TestWork* empty = Add(b_, 1, DType::kF32, {}, {});
  ASSERT_TRUE(queue_.Add(b_, &late).ok());
  clock_.Advance(absl::Milliseconds(30));
  TestWork* next = Add(b_, 0, DType::kF32, {1}, {2});
  Start(&device_);
  EXPECT_EQ(missing->Await().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(empty->Await().ok());
  EXPECT_EQ(late.Await().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(running->is_finished());
  device_.AllowAll();
  EXPECT_TRUE(running->Await().ok());
  EXPECT_TRUE(next->Await().ok());
  EXPECT_EQ(next->Bytes(), next->Expected(weights_, *reference_ffn_));
}

TEST_F(ExecutorPipelineTest, EndsAfterAnsweringWhatRunsAndWaits) {
  for (int i = 0; i < 5; ++i) Add(a_, i % 2, DType::kF32, {0, 1}, {9, 9});
  Start(&device_);
  device_.AwaitStarted(2);
  std::thread end([this] { executor_.reset(); });
  device_.AllowAll();
  end.join();
  ExpectAllRight();
}

TEST_F(ExecutorPipelineTest, ALostDeviceFailsWhatRunsAndWhatComes) {
  TestWork* good = Add(a_, 0, DType::kF32, {0}, {3});
  Add(a_, 1, DType::kF32, {0, 1}, {3, 40});  // in three calls
  Add(b_, 0, DType::kF32, {1}, {40});
  device_.BreakAt(1);
  device_.AllowAll();
  queue_.Close();  // all that is queued runs
  Start(&device_);
  EXPECT_TRUE(good->Await().ok());
  for (size_t i = 1; i < works_.size(); ++i) {
    EXPECT_EQ(works_[i]->Await(), absl::InternalError("device lost"));
    EXPECT_FALSE(works_[i]->has_rows());
  }
  executor_.reset();
  EXPECT_THAT(faults_, ElementsAre(absl::InternalError("device lost")));
  EXPECT_EQ(queue_.PendingRows(), 0);
}

TEST_F(ExecutorPipelineTest, ADeviceThatIsLostWhileTwoRunFailsBoth) {
  Add(a_, 0, DType::kF32, {0}, {3});
  Add(a_, 1, DType::kF32, {0}, {3});
  Start(&device_);
  device_.AwaitStarted(2);
  device_.BreakAt(0);
  device_.AllowAll();
  for (const auto& work : works_) {
    EXPECT_EQ(work->Await(), absl::InternalError("device lost"));
  }
  executor_.reset();
  EXPECT_EQ(faults_.size(), 1u);
}

TEST_F(ExecutorPipelineTest, TimeInWhichTwoRunCountsOnce) {
  Add(a_, 0, DType::kF32, {0}, {2});
  Add(a_, 1, DType::kF32, {0}, {2});
  Start(&device_);
  device_.AwaitStarted(2);
  device_.AllowAll();  // each takes 30 ms more
  for (const auto& work : works_) EXPECT_TRUE(work->Await().ok());
  EXPECT_EQ(works_[1]->timing().computed, absl::Milliseconds(60));
  EXPECT_EQ(load_.busy_us(), 60'000u);
}

TEST_F(ExecutorPipelineTest, SteadyStateAllocatesNothing) {
  TestWork one(0, DType::kF32, {0, 1, 2}, {4, 4, 4}, 1);
  TestWork two(1, DType::kBF16, {0, 2}, {2, 40}, 2);
  two.AddUp(5, 3);
  device_.AllowAll();
  Start(&device_);
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
