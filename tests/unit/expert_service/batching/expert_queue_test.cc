#include "expert_service/batching/expert_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "services/wire/payload_pool.h"
#include "tests/support/fake_clock.h"

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class NamedWork final : public ExpertWork {
 public:
  NamedWork(std::string name, uint32_t work_layer, int64_t rows)
      : name(std::move(name)) {
    layer = work_layer;
    num_rows = rows;
  }
  void CopyRows(int64_t, int64_t, std::byte*) const override {}
  void Finish(const absl::Status&, WorkOutput, const WorkTiming&) override {}

  const std::string name;
};

std::vector<std::string> Names(const std::vector<ExpertWork*>& works) {
  std::vector<std::string> names;
  for (const ExpertWork* work : works) {
    names.push_back(static_cast<const NamedWork*>(work)->name);
  }
  return names;
}

class ExpertQueueTest : public testing::Test {
 protected:
  NamedWork* Make(const std::string& name, uint32_t layer, int64_t rows) {
    works_.push_back(std::make_unique<NamedWork>(name, layer, rows));
    return works_.back().get();
  }
  absl::Status Add(ExpertQueue::Stream* stream, const std::string& name,
                   uint32_t layer, int64_t rows = 1) {
    return queue_.Add(stream, Make(name, layer, rows));
  }
  std::vector<std::string> Take(int64_t max_rows = 1000) {
    EXPECT_TRUE(queue_.TakeMerged(max_rows, &merged_));
    return Names(merged_.works);
  }

  FakeClock clock_;
  prometheus::Gauge gauge_;
  ExpertQueue queue_{{.capacity_rows = 100, .clock = &clock_},
                     {.queue_rows = &gauge_}};
  std::vector<std::unique_ptr<NamedWork>> works_;
  MergedBatch merged_;
};

TEST_F(ExpertQueueTest, MergesOneLayerOverStreamsInTurn) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 3).ok());
  ASSERT_TRUE(Add(a, "a2", 3).ok());
  ASSERT_TRUE(Add(a, "a3", 3).ok());
  ASSERT_TRUE(Add(b, "b1", 3).ok());
  ASSERT_TRUE(Add(b, "b2", 3).ok());
  EXPECT_THAT(Take(), ElementsAre("a1", "b1", "a2", "b2", "a3"));
  EXPECT_EQ(merged_.layer, 3u);
  EXPECT_EQ(merged_.num_rows, 5);
}

TEST_F(ExpertQueueTest, TheOldestBatchOfTheStreamInTurnNamesTheLayer) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  ASSERT_TRUE(Add(b, "b5", 5).ok());
  ASSERT_TRUE(Add(b, "b7", 7).ok());
  ASSERT_TRUE(Add(a, "a7", 7).ok());
  ASSERT_TRUE(Add(a, "a5", 5).ok());
  // b5 is the oldest of all, but it is a's turn.
  EXPECT_THAT(Take(), ElementsAre("a7", "b7"));
  EXPECT_EQ(merged_.layer, 7u);
  EXPECT_THAT(Take(), ElementsAre("b5", "a5"));
}

TEST_F(ExpertQueueTest, NoStreamIsStarvedByOthersThatShareALayer) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  auto* c = queue_.OpenStream();
  ASSERT_TRUE(Add(b, "b", 2).ok());
  for (const char* name : {"1", "2", "3"}) {
    ASSERT_TRUE(Add(a, std::string("a") + name, 1).ok());
    ASSERT_TRUE(Add(c, std::string("c") + name, 1).ok());
  }
  EXPECT_THAT(Take(2), ElementsAre("a1", "c1"));
  EXPECT_THAT(Take(2), ElementsAre("b"));
  EXPECT_THAT(Take(2), ElementsAre("c2", "a2"));
}

TEST_F(ExpertQueueTest, RowLimitSharesBetweenStreams) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  auto* c = queue_.OpenStream();
  for (const char* name : {"1", "2"}) {
    ASSERT_TRUE(Add(a, std::string("a") + name, 0, 4).ok());
    ASSERT_TRUE(Add(b, std::string("b") + name, 0, 4).ok());
    ASSERT_TRUE(Add(c, std::string("c") + name, 0, 4).ok());
  }
  EXPECT_THAT(Take(8), ElementsAre("a1", "b1"));
  EXPECT_THAT(Take(8), ElementsAre("b2", "c1"));
  EXPECT_THAT(Take(8), ElementsAre("c2", "a2"));
}

TEST_F(ExpertQueueTest, ABatchThatDoesNotFitIsNotOvertakenInItsStream) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 0, 6).ok());
  ASSERT_TRUE(Add(a, "large", 0, 9).ok());
  ASSERT_TRUE(Add(a, "small", 0, 1).ok());
  ASSERT_TRUE(Add(b, "b1", 0, 2).ok());
  EXPECT_THAT(Take(10), ElementsAre("a1", "b1"));
  EXPECT_THAT(Take(10), ElementsAre("large", "small"));
}

TEST_F(ExpertQueueTest, TheFirstBatchIsTakenWhateverItsSize) {
  auto* a = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "huge", 0, 5000).ok());
  EXPECT_THAT(Take(10), ElementsAre("huge"));
  EXPECT_EQ(merged_.num_rows, 5000);
}

TEST_F(ExpertQueueTest, RefusesRowsBeyondItsBound) {
  auto* a = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 0, 60).ok());
  ASSERT_TRUE(Add(a, "a2", 0, 40).ok());
  const absl::Status status = Add(a, "a3", 0, 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "the queue holds 100 of 100 rows and has no room for 1; "
            "send fewer rows at a time");
  EXPECT_THAT(Take(), ElementsAre("a1", "a2"));
  EXPECT_TRUE(Add(a, "a4", 0, 1).ok());
  EXPECT_THAT(Take(), ElementsAre("a4"));
}

TEST_F(ExpertQueueTest, AFullQueueStillTakesAnotherStreamsFirstBatch) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 0, 100).ok());
  EXPECT_EQ(Add(a, "a2", 0, 1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Add(b, "b1", 0, 50).ok());
  EXPECT_EQ(Add(b, "b2", 0, 1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Take(1000), ElementsAre("a1", "b1"));
}

TEST_F(ExpertQueueTest, ABatchLargerThanTheBoundIsTakenWhenNothingWaits) {
  auto* a = queue_.OpenStream();
  EXPECT_TRUE(Add(a, "huge", 0, 101).ok());
  EXPECT_EQ(Add(a, "more", 0, 1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Take(), ElementsAre("huge"));
  EXPECT_TRUE(Add(a, "small", 0, 1).ok());
  EXPECT_EQ(Add(a, "huge", 0, 101).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Take(), ElementsAre("small"));
}

TEST_F(ExpertQueueTest, AStreamWithinItsCreditsIsLetInBesideAFlood) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 0, 100).ok());
  ASSERT_TRUE(Add(b, "b1", 0, 20).ok());
  EXPECT_EQ(Add(a, "a2", 0, 1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Add(b, "b2", 0, 20).ok());
  EXPECT_EQ(Add(b, "b3", 0, 11).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ExpertQueueTest, SettlingWorksTellsTheirStreamsCredits) {
  auto* a = queue_.OpenStream();
  EXPECT_EQ(queue_.NewcomerCredits(), 50);
  auto* b = queue_.OpenStream();
  NamedWork* first = Make("a1", 0, 100);
  NamedWork* second = Make("a2", 0, 100);
  ASSERT_TRUE(queue_.Add(a, first).ok());
  ASSERT_FALSE(queue_.Add(a, second).ok());
  EXPECT_EQ(queue_.Settle(a, second), 87);  // b keeps the floor
  ASSERT_TRUE(Add(b, "b1", 0, 60).ok());
  Take();
  EXPECT_EQ(queue_.Settle(a, first), 50);
  clock_.Advance(absl::Hours(1));
  EXPECT_EQ(queue_.Settle(a, second), 12);  // all of a's demand is gone
}

TEST_F(ExpertQueueTest, ExpiredBatchesComeApart) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  NamedWork* late = Make("late", 4, 2);
  late->timeout = absl::Milliseconds(10);
  NamedWork* in_time = Make("in time", 4, 3);
  in_time->timeout = absl::Milliseconds(11);
  ASSERT_TRUE(queue_.Add(a, late).ok());
  ASSERT_TRUE(queue_.Add(a, in_time).ok());
  ASSERT_TRUE(Add(b, "patient", 4).ok());
  clock_.Advance(absl::Milliseconds(10));
  EXPECT_THAT(Take(), ElementsAre("in time", "patient"));
  EXPECT_THAT(Names(merged_.expired), ElementsAre("late"));
  EXPECT_EQ(merged_.num_rows, 4);
}

TEST_F(ExpertQueueTest, OnlyExpiredBatchesAreHandedOutToo) {
  auto* a = queue_.OpenStream();
  NamedWork* late = Make("late", 4, 2);
  late->timeout = absl::Milliseconds(1);
  ASSERT_TRUE(queue_.Add(a, late).ok());
  clock_.Advance(absl::Seconds(1));
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_THAT(Names(merged_.expired), ElementsAre("late"));
  EXPECT_EQ(queue_.WaitingRows(), 0);
}

TEST_F(ExpertQueueTest, TimeIsMeasuredFromArrival) {
  auto* a = queue_.OpenStream();
  clock_.Advance(absl::Hours(1));
  NamedWork* work = Make("w", 4, 2);
  work->timeout = absl::Milliseconds(5);
  ASSERT_TRUE(queue_.Add(a, work).ok());
  EXPECT_EQ(work->arrival(), clock_.Now());
  clock_.Advance(absl::Milliseconds(4));
  EXPECT_THAT(Take(), ElementsAre("w"));
}

TEST_F(ExpertQueueTest, CountsRowsWaitingAndRunning) {
  auto* a = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 0, 5).ok());
  ASSERT_TRUE(Add(a, "a2", 1, 7).ok());
  EXPECT_EQ(queue_.WaitingRows(), 12);
  EXPECT_EQ(gauge_.Value(), 12);
  Take();
  EXPECT_EQ(queue_.WaitingRows(), 7);
  EXPECT_EQ(queue_.PendingRows(), 12);
  Take();  // while a1 runs
  EXPECT_EQ(queue_.PendingRows(), 12);
  EXPECT_EQ(gauge_.Value(), 0);
  queue_.Done(5);
  EXPECT_EQ(queue_.PendingRows(), 7);
  queue_.Done(7);
  EXPECT_EQ(queue_.PendingRows(), 0);
}

TEST_F(ExpertQueueTest, TryTakeDoesNotWait) {
  auto* a = queue_.OpenStream();
  EXPECT_FALSE(queue_.TryTakeMerged(10, &merged_));
  ASSERT_TRUE(Add(a, "a1", 0, 3).ok());
  ASSERT_TRUE(Add(a, "a2", 1, 4).ok());
  ASSERT_TRUE(queue_.TryTakeMerged(10, &merged_));
  EXPECT_THAT(Names(merged_.works), ElementsAre("a1"));
  queue_.Close();
  EXPECT_TRUE(queue_.TryTakeMerged(10, &merged_));
  EXPECT_FALSE(queue_.TryTakeMerged(10, &merged_));
  EXPECT_THAT(merged_.works, IsEmpty());
}

TEST_F(ExpertQueueTest, RemoveHandsBackWhatWaits) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 0, 5).ok());
  ASSERT_TRUE(Add(b, "b1", 0, 6).ok());
  ASSERT_TRUE(Add(a, "a2", 1, 7).ok());
  EXPECT_THAT(Names(queue_.Remove(a)), ElementsAre("a1", "a2"));
  EXPECT_EQ(queue_.WaitingRows(), 6);
  queue_.CloseStream(a);
  EXPECT_THAT(Take(), ElementsAre("b1"));
  ASSERT_TRUE(Add(b, "b2", 0).ok());
  EXPECT_THAT(Take(), ElementsAre("b2"));
}

TEST_F(ExpertQueueTest, TakingTheLastOfAStreamLeavesItUsable) {
  auto* a = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "x", 1).ok());
  ASSERT_TRUE(Add(a, "y", 2).ok());
  ASSERT_TRUE(Add(a, "z", 1).ok());
  EXPECT_THAT(Take(), ElementsAre("x", "z"));  // z was the tail
  ASSERT_TRUE(Add(a, "w", 2).ok());
  EXPECT_THAT(Take(), ElementsAre("y", "w"));
}

TEST_F(ExpertQueueTest, StreamsThatComeAndGoKeepTheTurnFair) {
  auto* a = queue_.OpenStream();
  auto* b = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 1).ok());
  EXPECT_THAT(Take(), ElementsAre("a1"));  // now b's turn
  auto* c = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a2", 1).ok());
  ASSERT_TRUE(Add(b, "b2", 1).ok());
  ASSERT_TRUE(Add(c, "c2", 1).ok());
  EXPECT_THAT(Take(), ElementsAre("b2", "a2", "c2"));
  queue_.CloseStream(a);  // whose turn it is; c is next
  ASSERT_TRUE(Add(b, "b3", 1).ok());
  ASSERT_TRUE(Add(c, "c3", 1).ok());
  EXPECT_THAT(Take(), ElementsAre("c3", "b3"));
}

TEST_F(ExpertQueueTest, CloseGivesOutTheRestAndThenEnds) {
  auto* a = queue_.OpenStream();
  ASSERT_TRUE(Add(a, "a1", 0).ok());
  queue_.Close();
  EXPECT_EQ(Add(a, "a2", 0).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Take(), ElementsAre("a1"));
  EXPECT_FALSE(queue_.TakeMerged(10, &merged_));
  EXPECT_THAT(merged_.works, IsEmpty());
}

TEST_F(ExpertQueueTest, TakeBlocksUntilWorkOrClose) {
  auto* a = queue_.OpenStream();
  std::atomic<int> taken{0};
  std::thread taker([&] {
    MergedBatch merged;
    while (queue_.TakeMerged(1, &merged)) {
      taken.fetch_add(static_cast<int>(merged.works.size()));
    }
  });
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(Add(a, "x", 0).ok());
  queue_.Close();
  taker.join();
  EXPECT_EQ(taken.load(), 50);
}

TEST_F(ExpertQueueTest, ManyStreamsFromManyThreadsLoseNothing) {
  constexpr int kThreads = 4;
  constexpr int kEach = 500;
  ExpertQueue queue({.capacity_rows = 1 << 30}, {});
  std::vector<std::vector<std::unique_ptr<NamedWork>>> works(kThreads);
  std::vector<std::thread> producers;
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < kEach; ++i) {
      works[t].push_back(std::make_unique<NamedWork>("w", i % 3, 1 + i % 5));
    }
    producers.emplace_back([&, t] {
      auto* stream = queue.OpenStream();
      for (const auto& work : works[t]) {
        ASSERT_TRUE(queue.Add(stream, work.get()).ok());
      }
    });
  }
  int taken = 0;
  MergedBatch merged;
  while (taken < kThreads * kEach) {
    ASSERT_TRUE(queue.TakeMerged(16, &merged));
    for (const ExpertWork* work : merged.works) {
      EXPECT_EQ(work->layer, merged.layer);
    }
    taken += static_cast<int>(merged.works.size());
  }
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(taken, kThreads * kEach);
  EXPECT_EQ(queue.WaitingRows(), 0);
}

}  // namespace
}  // namespace expertmesh::expert
