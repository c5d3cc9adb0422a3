#include "expert_service/execution/expert_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "services/core/worker_pool.h"
#include "services/linalg/activation_row.h"
#include "services/wire/row_sum.h"
#include "tests/support/allocation_counter.h"
#include "tests/support/fake_clock.h"

namespace expertmesh::expert {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kHidden = 24;
constexpr int64_t kIntermediate = 40;
constexpr int64_t kLayers = 2;
constexpr int64_t kExperts = 4;
constexpr int64_t kMaxRows = 16;

// Multiples of 1/64 below 2: exact in f32 and bf16.
void FillRandom(std::byte* out, int64_t num_rows, int64_t width, DType dtype,
                uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> row(width);
  for (int64_t r = 0; r < num_rows; ++r, out += RowBytes(dtype, width)) {
    for (float& value : row) {
      value = (static_cast<float>(random() % 256) - 128.0f) / 64.0f;
    }
    StoreRow(row.data(), width, dtype, out);
  }
}

PackedMatrix RandomMatrix(int64_t n, int64_t k, uint32_t seed) {
  Buffer data(static_cast<size_t>(n * k) * 4);
  FillRandom(data.data(), n, k, DType::kF32, seed);
  return *PackedMatrix::Pack(TensorView{data.data(), DType::kF32, {n, k}});
}

// All experts but the last of each layer.
ExpertWeights MakeWeights() {
  std::vector<ExpertSlot> slots;
  std::vector<PackedExpert> experts;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t expert = 0; expert + 1 < kExperts; ++expert) {
      const auto seed = static_cast<uint32_t>(100 * layer + 10 * expert);
      slots.push_back({layer, expert});
      experts.push_back({RandomMatrix(kIntermediate, kHidden, seed),
                         RandomMatrix(kIntermediate, kHidden, seed + 1),
                         RandomMatrix(kHidden, kIntermediate, seed + 2)});
    }
  }
  return ExpertWeights(kLayers, kExperts, std::move(slots), std::move(experts));
}

// A batch of random rows that waits for its own end.
class TestWork final : public ExpertWork {
 public:
  TestWork(uint32_t work_layer, DType type, std::vector<uint32_t> experts,
           std::vector<uint32_t> rows_of_expert, uint32_t seed)
      : experts_(std::move(experts)), offsets_(1, 0) {
    for (const uint32_t rows : rows_of_expert) {
      offsets_.push_back(offsets_.back() + rows);
    }
    layer = work_layer;
    dtype = type;
    expert_ids = experts_;
    group_offsets = offsets_;
    num_rows = num_lone_rows = offsets_.back();
    in_ = Buffer(static_cast<size_t>(num_rows) * row_bytes());
    FillRandom(in_.data(), num_rows, kHidden, dtype, seed);
  }

  // Has so many sums, and every row go into one of them or, now and then, not.
  void AddUp(uint32_t sums, uint32_t seed) {
    std::mt19937 random(seed);
    num_lone_rows = 0;
    for (int64_t row = 0; row < num_rows; ++row) {
      const uint32_t sum = random() % (sums + 1);
      sums_of_rows_.push_back(sum == sums ? kNoSum : sum);
      num_lone_rows += sum == sums;
      weights_of_rows_.push_back(static_cast<float>(random() % 1000) / 999.0f);
    }
    row_sum = sums_of_rows_;
    row_weight = weights_of_rows_;
    num_sums = sums;
  }

  size_t row_bytes() const { return RowBytes(dtype, kHidden); }

  void CopyRows(int64_t first, int64_t last, std::byte* out) const override {
    std::memcpy(out, in_.data() + static_cast<size_t>(first) * row_bytes(),
                static_cast<size_t>(last - first) * row_bytes());
  }
  void Finish(const absl::Status& status, WorkOutput output,
              const WorkTiming& timing) override {
    MutexLock lock(&mutex_);
    status_ = status;
    output_ = std::move(output);
    timing_ = timing;
    ++finished_;
    changed_.NotifyAll();
  }

  absl::Status Await() {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [this] { return finished_ > 0; });
    EXPECT_EQ(finished_, 1);
    return status_;
  }
  // Rows, then sums.
  std::string Bytes() const {
    std::string bytes;
    for (const PayloadRef* part : {&output_.rows, &output_.sums}) {
      bytes.append(reinterpret_cast<const char*>(part->data()), part->size());
    }
    return bytes;
  }
  bool has_rows() const { return output_.rows || output_.sums; }
  const WorkTiming& timing() const { return timing_; }
  void Reset() {
    finished_ = 0;
    output_ = {};
  }

  // This batch alone, straight through the kernel.
  std::string Expected(const ExpertWeights& weights, GroupedFfn& ffn) const {
    std::vector<const PackedExpert*> experts;
    for (const uint32_t expert : experts_) {
      experts.push_back(weights.Find(layer, expert));
    }
    Buffer y(in_.size());
    EXPECT_TRUE(ffn.Run({experts, offsets_, dtype, in_.data(), y.data()}).ok());
    return AddedUp(y.data());
  }

 private:
  // Plainly: each sum from zero, in the order of the rows.
  std::string AddedUp(const std::byte* y) const {
    std::string rows;
    std::vector<float> sums(num_sums * kHidden, 0.0f);
    for (int64_t row = 0; row < num_rows; ++row, y += row_bytes()) {
      if (num_sums == 0 || row_sum[row] == kNoSum) {
        rows.append(reinterpret_cast<const char*>(y), row_bytes());
        continue;
      }
      AddScaledRow(row_weight[row], y, dtype, 0, kHidden,
                   &sums[row_sum[row] * kHidden]);
    }
    rows.append(reinterpret_cast<const char*>(sums.data()),
                sums.size() * sizeof(float));
    return rows;
  }

  std::vector<uint32_t> experts_, offsets_;
  std::vector<uint32_t> sums_of_rows_;
  std::vector<float> weights_of_rows_;
  Buffer in_;
  Mutex mutex_;
  CondVar changed_;
  int finished_ = 0;
  absl::Status status_;
  WorkOutput output_;
  WorkTiming timing_;
};

class BrokenFfn final : public GroupedFfn {
 public:
  absl::Status Run(const GroupedRows&) override {
    return absl::InternalError("device lost");
  }
};

// Takes 30 ms by the clock.
class SlowFfn final : public GroupedFfn {
 public:
  explicit SlowFfn(FakeClock* clock) : clock_(clock) {}
  absl::Status Run(const GroupedRows&) override {
    clock_->Advance(absl::Milliseconds(30));
    return absl::OkStatus();
  }

 private:
  FakeClock* const clock_;
};

class ExpertExecutorTest : public testing::Test {
 protected:
  void Start(GroupedFfn* ffn = nullptr) {
    executor_ = std::make_unique<ExpertExecutor>(
        ExpertExecutor::Options{kHidden, kMaxRows, &clock_},
        ExpertExecutor::Metrics{&batch_rows_, nullptr, nullptr, &rows_},
        ExpertExecutor::Parts{&queue_, &live_,
                              ffn != nullptr ? ffn : ffn_.get(), &replies_,
                              &load_, &pool_});
  }
  TestWork* Add(ExpertQueue::Stream* stream, uint32_t layer, DType dtype,
                std::vector<uint32_t> experts, std::vector<uint32_t> rows,
                uint32_t num_sums = 0) {
    works_.push_back(std::make_unique<TestWork>(
        layer, dtype, std::move(experts), std::move(rows),
        static_cast<uint32_t>(works_.size())));
    if (num_sums > 0) works_.back()->AddUp(num_sums, 77);
    EXPECT_TRUE(queue_.Add(stream, works_.back().get()).ok());
    return works_.back().get();
  }
  void ExpectAllRight() {
    for (const auto& work : works_) {
      const absl::Status status = work->Await();
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(work->Bytes(), work->Expected(weights_, *reference_ffn_));
    }
  }

  static std::unique_ptr<GroupedFfn> MakeFfn(WorkerPool* pool,
                                             int64_t max_rows) {
    return MakeGroupedFfnCpu({kHidden, kIntermediate, max_rows}, pool);
  }

  FakeClock clock_;
  prometheus::Histogram batch_rows_{{4, 8, 16, 32, 64}};
  prometheus::Counter rows_;
  ExpertQueue queue_{{.capacity_rows = 10000, .clock = &clock_}, {}};
  ExpertQueue::Stream* a_ = queue_.OpenStream();
  ExpertQueue::Stream* b_ = queue_.OpenStream();
  ExpertWeights weights_ = MakeWeights();
  LiveWeights live_{std::make_shared<ExpertWeights>(weights_)};
  PayloadPool replies_;
  SlotLoad load_{kLayers, kExperts};
  WorkerPool pool_{2};
  WorkerPool reference_pool_{1};
  std::unique_ptr<GroupedFfn> ffn_ = MakeFfn(&pool_, kMaxRows);
  std::unique_ptr<GroupedFfn> reference_ffn_ = MakeFfn(&reference_pool_, 1000);
  std::vector<std::unique_ptr<TestWork>> works_;
  std::unique_ptr<ExpertExecutor> executor_;  // ends before its parts
};

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
