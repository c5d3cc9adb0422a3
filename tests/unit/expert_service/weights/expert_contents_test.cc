#include "expert_service/weights/expert_contents.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <new>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kLayers = 2;
constexpr int64_t kExperts = 4;

PackedExpert Pack() {
  const std::vector<float> values(64 * 64);
  const TensorView view{
      reinterpret_cast<const std::byte*>(values.data()), DType::kF32, {64, 64}};
  return {*PackedMatrix::Pack(view), *PackedMatrix::Pack(view),
          *PackedMatrix::Pack(view)};
}

const size_t kSlotBytes = Pack().size_bytes();

class ExpertContentsTest : public testing::Test {
 protected:
  ExpertContentsTest() {
    model_.num_layers = kLayers;
    model_.num_experts = kExperts;
    model_.layers.resize(kLayers);
    Limit(0);
  }
  void Limit(uint64_t budget_bytes) {
    contents_ = std::make_unique<ExpertContents>(
        ExpertContents::Options{
            &model_,
            [this](ExpertSlot slot, const std::stop_token&) {
              return Read(slot);
            },
            kSlotBytes, budget_bytes},
        ExpertContents::Metrics{&slots_, &bytes_}, &live_);
  }
  absl::StatusOr<ExpertWeights::Expert> Read(ExpertSlot slot) {
    read_.push_back(slot);
    if (slot == broken_) return absl::FailedPreconditionError("torn tensor");
    if (slot == too_large_) throw std::bad_alloc();
    return std::make_shared<const PackedExpert>(Pack());
  }
  absl::Status Load(std::vector<ExpertSlot> slots, uint64_t epoch = 0) {
    return contents_->Load(slots, epoch, {});
  }
  std::vector<ExpertSlot> Held() {
    const auto weights = live_.Get();
    return {weights->slots().begin(), weights->slots().end()};
  }

  ModelConfig model_;
  prometheus::Gauge slots_, bytes_;
  LiveWeights live_{std::make_shared<ExpertWeights>(
      kLayers, kExperts, std::vector<ExpertSlot>(),
      std::vector<PackedExpert>())};
  std::unique_ptr<ExpertContents> contents_;
  std::vector<ExpertSlot> read_;
  ExpertSlot broken_{-1, -1};
  ExpertSlot too_large_{-1, -1};
};

TEST_F(ExpertContentsTest, LoadsWhatIsMissingOnce) {
  ASSERT_TRUE(Load({{1, 3}, {0, 2}, {1, 3}}).ok());
  EXPECT_THAT(Held(), ElementsAre(ExpertSlot{0, 2}, ExpertSlot{1, 3}));
  const auto first = live_.Get();
  ASSERT_TRUE(Load({{0, 2}, {0, 3}}).ok());
  EXPECT_THAT(
      read_, ElementsAre(ExpertSlot{0, 2}, ExpertSlot{1, 3}, ExpertSlot{0, 3}));
  EXPECT_EQ(live_.Get()->Find(0, 2), first->Find(0, 2));  // the same memory
  EXPECT_EQ(first->Find(0, 3), nullptr);
  EXPECT_EQ(slots_.Value(), 3);
  EXPECT_EQ(bytes_.Value(), 3.0 * kSlotBytes);
}

TEST_F(ExpertContentsTest, UnloadsAndLoadsAgain) {
  ASSERT_TRUE(Load({{0, 0}, {0, 1}, {1, 1}}).ok());
  ASSERT_TRUE(contents_->Unload({ExpertSlot{0, 1}, {1, 3}}, 0).ok());
  EXPECT_THAT(Held(), ElementsAre(ExpertSlot{0, 0}, ExpertSlot{1, 1}));
  EXPECT_EQ(bytes_.Value(), 2.0 * kSlotBytes);
  ASSERT_TRUE(Load({{0, 1}}).ok());
  EXPECT_NE(live_.Get()->Find(0, 1), nullptr);
}

TEST_F(ExpertContentsTest, UnloadWaitsForTheBatchThatUsesIt) {
  ASSERT_TRUE(Load({{0, 0}}).ok());
  auto running = live_.Get();
  std::atomic<bool> unloaded = false;
  std::thread order([&] {
    EXPECT_TRUE(contents_->Unload({ExpertSlot{0, 0}}, 0).ok());
    unloaded = true;
  });
  while (live_.Get()->Find(0, 0) != nullptr) std::this_thread::yield();
  EXPECT_FALSE(unloaded);
  EXPECT_NE(running->Find(0, 0), nullptr);
  running.reset();
  order.join();
  EXPECT_TRUE(unloaded);
}

TEST_F(ExpertContentsTest, RefusesOlderEpochs) {
  ASSERT_TRUE(Load({{0, 0}}, 7).ok());
  EXPECT_EQ(contents_->epoch(), 7u);
  for (const absl::Status& status :
       {Load({{0, 1}}, 6), contents_->Unload({ExpertSlot{0, 0}}, 6)}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("6 is older than 7"));
  }
  EXPECT_THAT(Held(), ElementsAre(ExpertSlot{0, 0}));
  EXPECT_TRUE(Load({{0, 1}}, 7).ok());
  EXPECT_TRUE(contents_->Unload({ExpertSlot{0, 0}}, 9).ok());
  EXPECT_EQ(contents_->epoch(), 9u);
}

TEST_F(ExpertContentsTest, WhatExceedsTheBudgetChangesNothing) {
  Limit(3 * kSlotBytes + kSlotBytes / 2);
  ASSERT_TRUE(Load({{0, 0}}, 1).ok());
  const absl::Status status = Load({{0, 0}, {0, 1}, {0, 2}, {0, 3}}, 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(status.message()),
      HasSubstr("3 more experts of 49152 bytes do not fit: the budget of "
                "172032 bytes (--memory-budget) has room for 2 beside "
                "the 1"));
  EXPECT_THAT(Held(), ElementsAre(ExpertSlot{0, 0}));
  EXPECT_EQ(contents_->epoch(), 1u);
  EXPECT_TRUE(Load({{0, 1}, {0, 2}}, 2).ok());
  ASSERT_TRUE(contents_->Unload({ExpertSlot{0, 0}}, 2).ok());
  EXPECT_TRUE(Load({{1, 0}}, 2).ok());
}

TEST_F(ExpertContentsTest, AFaultyTensorChangesNothing) {
  broken_ = {0, 2};
  const absl::Status status = Load({{0, 1}, {0, 2}, {0, 3}});
  EXPECT_EQ(status.message(), "torn tensor");
  EXPECT_THAT(Held(), IsEmpty());
  EXPECT_TRUE(Load({{0, 1}}).ok());
}

TEST_F(ExpertContentsTest, CanBeGivenUp) {
  std::vector<int64_t> progress;
  SlotLoadOptions options;
  std::stop_source stop;
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 3);
    progress.push_back(done);
    if (done == 2) stop.request_stop();
  };
  options.stop = stop.get_token();
  const absl::Status status =
      contents_->Load({ExpertSlot{0, 0}, {0, 1}, {0, 2}}, 0, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(progress, ElementsAre(1, 2));
  EXPECT_THAT(Held(), IsEmpty());
}

TEST_F(ExpertContentsTest, WhatIsGivenUpDuringItsLastSlotIsNotPublished) {
  std::stop_source stop;
  SlotLoadOptions options;
  options.progress = [&](int64_t, int64_t) { stop.request_stop(); };
  options.stop = stop.get_token();
  EXPECT_EQ(contents_->Load({ExpertSlot{0, 0}}, 3, options).code(),
            absl::StatusCode::kCancelled);
  EXPECT_THAT(Held(), IsEmpty());
  EXPECT_EQ(contents_->epoch(), 0u);
}

TEST_F(ExpertContentsTest, WithoutMemoryAnOrderIsRefusedAndTheRestServesOn) {
  ASSERT_TRUE(Load({{0, 0}}, 1).ok());
  too_large_ = {0, 2};
  const absl::Status status = Load({{0, 1}, {0, 2}}, 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expert 2 of layer 0"));
  EXPECT_THAT(Held(), ElementsAre(ExpertSlot{0, 0}));
  EXPECT_EQ(contents_->epoch(), 1u);
}

TEST_F(ExpertContentsTest, RefusesSlotsTheModelLacks) {
  EXPECT_EQ(Load({{0, 4}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(contents_->Unload({ExpertSlot{2, 0}}, 0).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertmesh::expert
