#pragma once

// Random experts and batches for an executor, and what is to come of them.

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "expert_service/batching/expert_work.h"
#include "expert_service/execution/expert_executor.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "expert_service/weights/expert_weights.h"
#include "services/core/mutex.h"
#include "services/core/worker_pool.h"
#include "services/linalg/activation_row.h"
#include "services/wire/row_sum.h"
#include "tests/support/fake_clock.h"

namespace expertmesh::expert {

inline constexpr int64_t kHidden = 24;
inline constexpr int64_t kIntermediate = 40;
inline constexpr int64_t kLayers = 2;
inline constexpr int64_t kExperts = 4;
inline constexpr int64_t kMaxRows = 16;

// Multiples of 1/64 below 2: exact in f32 and bf16.
inline void FillRandom(std::byte* out, int64_t num_rows, int64_t width,
                       DType dtype, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> row(width);
  for (int64_t r = 0; r < num_rows; ++r, out += RowBytes(dtype, width)) {
    for (float& value : row) {
      value = (static_cast<float>(random() % 256) - 128.0f) / 64.0f;
    }
    StoreRow(row.data(), width, dtype, out);
  }
}

inline PackedMatrix RandomMatrix(int64_t n, int64_t k, uint32_t seed) {
  Buffer data(static_cast<size_t>(n * k) * 4);
  FillRandom(data.data(), n, k, DType::kF32, seed);
  return *PackedMatrix::Pack(TensorView{data.data(), DType::kF32, {n, k}});
}

// All experts but the last of each layer, as `load` brings them to a device.
template <typename Load>
ExpertWeights MakeWeights(const Load& load) {
  std::vector<ExpertSlot> slots;
  std::vector<ExpertWeights::Expert> experts;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t expert = 0; expert + 1 < kExperts; ++expert) {
      const auto seed = static_cast<uint32_t>(100 * layer + 10 * expert);
      slots.push_back({layer, expert});
      experts.push_back(
          load(PackedExpert(RandomMatrix(kIntermediate, kHidden, seed),
                            RandomMatrix(kIntermediate, kHidden, seed + 1),
                            RandomMatrix(kHidden, kIntermediate, seed + 2))));
    }
  }
  return ExpertWeights(kLayers, kExperts, std::move(slots), std::move(experts));
}

// The CPU's.
inline ExpertWeights MakeWeights() {
  return MakeWeights([](PackedExpert expert) {
    return std::make_shared<const PackedExpert>(std::move(expert));
  });
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
    place_ = ++num_finished;
    ++finished_;
    changed_.NotifyAll();
  }

  absl::Status Await() {
    MutexLock lock(&mutex_);
    changed_.Wait(lock, [this] { return finished_ > 0; });
    EXPECT_EQ(finished_, 1);
    return status_;
  }
  bool is_finished() {
    MutexLock lock(&mutex_);
    return finished_ > 0;
  }
  // Works that finish later have a higher one.
  int place() const { return place_; }
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
    std::vector<const LoadedExpert*> experts;
    for (const uint32_t expert : experts_) {
      experts.push_back(weights.Find(layer, expert));
    }
    const RowBuffer x = ffn.NewRowBuffer(in_.size());
    const RowBuffer y = ffn.NewRowBuffer(in_.size());
    std::memcpy(x.get(), in_.data(), in_.size());
    EXPECT_TRUE(ffn.Run({experts, offsets_, dtype, x.get(), y.get()}).ok());
    return AddedUp(y.get());
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

  static inline std::atomic<int> num_finished = 0;

  std::vector<uint32_t> experts_, offsets_;
  std::vector<uint32_t> sums_of_rows_;
  std::vector<float> weights_of_rows_;
  Buffer in_;
  Mutex mutex_;
  CondVar changed_;
  int finished_ = 0;
  int place_ = 0;
  absl::Status status_;
  WorkOutput output_;
  WorkTiming timing_;
};

// An executor and all its parts.
class ExecutorFixture : public testing::Test {
 protected:
  void Start(GroupedFfn* ffn = nullptr) {
    executor_ = std::make_unique<ExpertExecutor>(
        ExpertExecutor::Options{
            kHidden, kMaxRows, &clock_,
            [this](const absl::Status& fault) { faults_.push_back(fault); }},
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
  std::vector<absl::Status> faults_;  // read once the executor has ended
  std::vector<std::unique_ptr<TestWork>> works_;
  std::unique_ptr<ExpertExecutor> executor_;  // ends before its parts
};

}  // namespace expertmesh::expert
