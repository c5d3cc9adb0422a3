// Experts and batches on a device, by way of the emulation.

#include "expert_service/kernels/cuda/cuda_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "expert_service/kernels/grouped_ffn_reference.h"
#include "expert_service/weights/expert_contents.h"
#include "services/linalg/activation_row.h"
#include "tests/support/cuda_emulation/control.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh::expert {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int64_t kHidden = 72;
constexpr int64_t kIntermediate = 136;
constexpr int64_t kMaxRows = 48;
constexpr int kNumExperts = 3;

// A matrix as a tensor of a type.
TypedValues RandomTensor(int64_t n, int64_t k, DType type, uint32_t seed) {
  const float scale = 2.0f / std::sqrt(static_cast<float>(k));
  return TypedValues(RandomFloats(n * k, seed, scale), type);
}

// A batch in row buffers of a kernel.
struct Batch {
  Batch(GroupedFfn& ffn, std::vector<const LoadedExpert*> of,
        std::vector<uint32_t> rows_of_group, DType type, uint32_t seed)
      : experts(std::move(of)), dtype(type) {
    for (const uint32_t rows : rows_of_group) {
      offsets.push_back(offsets.back() + rows);
    }
    const size_t row_bytes = RowBytes(type, kHidden);
    bytes = offsets.back() * row_bytes;
    x = ffn.NewRowBuffer(bytes);
    y = ffn.NewRowBuffer(bytes);
    const std::vector<float> values =
        RandomFloats(offsets.back() * kHidden, seed);
    for (uint32_t row = 0; row < offsets.back(); ++row) {
      StoreRow(&values[row * kHidden], kHidden, type,
               x.get() + row * row_bytes);
    }
  }
  GroupedRows rows() const {
    return {experts, offsets, dtype, x.get(), y.get()};
  }
  std::string Y() const {
    return std::string(reinterpret_cast<const char*>(y.get()), bytes);
  }
  std::vector<float> YAsF32() const {
    std::vector<float> values(offsets.back() * kHidden);
    for (uint32_t row = 0; row < offsets.back(); ++row) {
      AddScaledRow(1.0f, y.get() + row * RowBytes(dtype, kHidden), dtype, 0,
                   kHidden, &values[row * kHidden]);
    }
    return values;
  }

  std::vector<const LoadedExpert*> experts;
  std::vector<uint32_t> offsets = {0};
  DType dtype;
  size_t bytes = 0;
  RowBuffer x, y;
};

class CudaBackendTest : public testing::Test {
 protected:
  ~CudaBackendTest() override {
    cuda_emulation::ClearFault();
    cuda_emulation::SetDeviceMemory(size_t{1} << 30);
  }

  static CudaBackendOptions Options(WeightFormat format) {
    CudaBackendOptions options;
    options.hidden_size = kHidden;
    options.intermediate_size = kIntermediate;
    options.format = format;
    options.max_rows = kMaxRows;
    options.max_groups = kNumExperts;
    return options;
  }
  void Open(WeightFormat format) {
    auto backend = OpenCudaBackend(Options(format));
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    for (int e = 0; e < kNumExperts; ++e) {
      packed_.push_back(Packed(format, e));
      auto expert = backend_->Load(packed_.back());
      ASSERT_TRUE(expert.ok()) << expert.status();
      experts_.push_back(*std::move(expert));
    }
  }
  static PackedExpert Packed(WeightFormat format, uint32_t seed) {
    const DType type = format == WeightFormat::kBF16  ? DType::kBF16
                       : format == WeightFormat::kF16 ? DType::kF16
                                                      : DType::kF32;
    const auto pack = [&](int64_t n, int64_t k, uint32_t part) {
      const TypedValues values = RandomTensor(n, k, type, 3 * seed + part);
      return *PackedMatrix::Pack(values.View(n, k), format);
    };
    return PackedExpert(pack(kIntermediate, kHidden, 1),
                        pack(kIntermediate, kHidden, 2),
                        pack(kHidden, kIntermediate, 3));
  }
  std::vector<const LoadedExpert*> Experts() const {
    std::vector<const LoadedExpert*> experts;
    for (const auto& expert : experts_) experts.push_back(expert.get());
    return experts;
  }
  GroupedFfn& ffn() { return backend_->ffn(); }

  std::unique_ptr<CudaBackend> backend_;
  std::vector<PackedExpert> packed_;
  std::vector<std::shared_ptr<const LoadedExpert>> experts_;
};

TEST_F(CudaBackendTest, ComputesWhatTheReferenceDoes) {
  for (const WeightFormat format :
       {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kF16,
        WeightFormat::kInt8, WeightFormat::kInt4}) {
    packed_.clear();
    experts_.clear();
    Open(format);
    EXPECT_EQ(experts_[0]->size_bytes(),
              static_cast<size_t>(backend_->expert_bytes()));
    const auto reference =
        MakeGroupedFfnReference({kHidden, kIntermediate, kMaxRows,
                                 Activation::kSiluGlu, IsQuantized(format)});
    for (const DType type : {DType::kF32, DType::kBF16, DType::kInt8}) {
      SCOPED_TRACE(testing::Message()
                   << DTypeName(type) << " x " << WeightFormatName(format));
      const std::vector<uint32_t> rows = {5, 0, 20};
      const Batch batch(ffn(), Experts(), rows, type, 9);
      ASSERT_TRUE(ffn().Run(batch.rows()).ok());
      const Batch expected(*reference, {&packed_[0], &packed_[1], &packed_[2]},
                           rows, type, 9);
      ASSERT_TRUE(reference->Run(expected.rows()).ok());
      const std::vector<float> y = batch.YAsF32();
      const std::vector<float> want = expected.YAsF32();
      // The reference takes quantized experts' rows in codes, the device in
      // bf16.
      const float tolerance = IsQuantized(format) ? 6e-2f : 2e-2f;
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_NEAR(y[i], want[i], tolerance) << "element " << i;
      }
    }
  }
}

TEST_F(CudaBackendTest, TensorsGiveWhatPackedExpertsGive) {
  for (const auto& [type, format] :
       {std::pair(DType::kBF16, WeightFormat::kBF16),
        std::pair(DType::kF32, WeightFormat::kBF16),
        std::pair(DType::kF32, WeightFormat::kF32),
        std::pair(DType::kF16, WeightFormat::kF16)}) {
    SCOPED_TRACE(testing::Message()
                 << DTypeName(type) << " as " << WeightFormatName(format));
    Open(format);
    ASSERT_TRUE(backend_->takes_tensors());
    const TypedValues gate = RandomTensor(kIntermediate, kHidden, type, 1);
    const TypedValues up = RandomTensor(kIntermediate, kHidden, type, 2);
    const TypedValues down = RandomTensor(kHidden, kIntermediate, type, 3);
    const ExpertTensors tensors = {gate.View(kIntermediate, kHidden),
                                   up.View(kIntermediate, kHidden),
                                   down.View(kHidden, kIntermediate)};
    const auto pack = [format = format](const TensorView& tensor) {
      return *PackedMatrix::Pack(tensor, format);
    };
    const auto from_tensors = backend_->Load(tensors);
    const auto from_packed = backend_->Load(
        PackedExpert(pack(tensors.gate_proj), pack(tensors.up_proj),
                     pack(tensors.down_proj)));
    ASSERT_TRUE(from_tensors.ok()) << from_tensors.status();
    ASSERT_TRUE(from_packed.ok()) << from_packed.status();
    const Batch one(ffn(), {from_tensors->get()}, {7}, DType::kBF16, 5);
    const Batch other(ffn(), {from_packed->get()}, {7}, DType::kBF16, 5);
    ASSERT_TRUE(ffn().Run(one.rows()).ok());
    ASSERT_TRUE(ffn().Run(other.rows()).ok());
    EXPECT_EQ(one.Y(), other.Y());
  }
}

TEST_F(CudaBackendTest, TwoBatchesAtATimeGiveTheSameBits) {
  Open(WeightFormat::kBF16);
  ASSERT_EQ(ffn().max_started(), 2);
  for (const DType type : {DType::kF32, DType::kBF16, DType::kInt8}) {
    const Batch one(ffn(), Experts(), {1, 30, 3}, type, 1);
    const Batch two(ffn(), {experts_[2].get()}, {17}, DType::kBF16, 2);
    const Batch none(ffn(), {}, {}, type, 3);
    ASSERT_TRUE(ffn().Run(one.rows()).ok());
    ASSERT_TRUE(ffn().Run(two.rows()).ok());
    const std::string y_one = one.Y();
    const std::string y_two = two.Y();
    std::memset(one.y.get(), 0xab, one.bytes);
    std::memset(two.y.get(), 0xab, two.bytes);
    ASSERT_TRUE(ffn().Start(one.rows()).ok());
    ASSERT_TRUE(ffn().Start(two.rows()).ok());
    ASSERT_TRUE(ffn().Finish().ok());
    EXPECT_EQ(one.Y(), y_one);
    ASSERT_TRUE(ffn().Start(none.rows()).ok());
    ASSERT_TRUE(ffn().Finish().ok());
    EXPECT_EQ(two.Y(), y_two);
    ASSERT_TRUE(ffn().Finish().ok());
  }
}

TEST_F(CudaBackendTest, BatchesTakeNoMoreMemory) {
  Open(WeightFormat::kBF16);
  const Batch batch(ffn(), Experts(), {4, 4, 4}, DType::kBF16, 1);
  const size_t used = cuda_emulation::DeviceBytesInUse();
  ASSERT_TRUE(ffn().Start(batch.rows()).ok());
  EXPECT_EQ(cuda_emulation::DeviceBytesInUse(), used);
  ASSERT_TRUE(ffn().Finish().ok());
  backend_.reset();
  experts_.clear();
  EXPECT_EQ(cuda_emulation::DeviceBytesInUse(), 0u);
}

TEST_F(CudaBackendTest, AFaultOfAnyCallLosesTheDevice) {
  Open(WeightFormat::kBF16);
  int64_t calls = 0;
  {
    const Batch batch(ffn(), Experts(), {4, 4, 20}, DType::kF32, 1);
    cuda_emulation::ClearFault();
    ASSERT_TRUE(ffn().Run(batch.rows()).ok());
    calls = cuda_emulation::CallsCounted();
  }
  int64_t faults = 0;
  for (int64_t call = 1; call <= calls; ++call) {
    packed_.clear();
    experts_.clear();
    Open(WeightFormat::kBF16);
    const Batch batch(ffn(), Experts(), {4, 4, 20}, DType::kF32, 1);
    cuda_emulation::PlanFault({.call = call});
    const absl::Status fault = ffn().Run(batch.rows());
    if (fault.ok()) continue;  // fewer looks at the end were enough
    ++faults;
    EXPECT_EQ(fault.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(fault.message()), StartsWith("device lost: "));
    cuda_emulation::ClearFault();
    EXPECT_EQ(ffn().Start(batch.rows()), fault);  // and it lasts
  }
  // The device, the copies, two products, the event and waiting for it.
  EXPECT_GE(faults, 7);
}

TEST_F(CudaBackendTest, WithALostDeviceBothBatchesEnd) {
  Open(WeightFormat::kBF16);
  const Batch one(ffn(), Experts(), {1, 2, 3}, DType::kBF16, 1);
  const Batch two(ffn(), Experts(), {3, 2, 1}, DType::kBF16, 2);
  ASSERT_TRUE(ffn().Start(one.rows()).ok());
  ASSERT_TRUE(ffn().Start(two.rows()).ok());
  cuda_emulation::PlanFault({.call = 1, .lasting = true});
  const absl::Status fault = ffn().Finish();
  EXPECT_EQ(fault.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ffn().Finish(), fault);
  EXPECT_EQ(ffn().Start(one.rows()), fault);
}

// Contents whose experts are the backend's.
class CudaContentsTest : public CudaBackendTest {
 protected:
  CudaContentsTest() {
    model_.num_layers = 1;
    model_.num_experts = 64;
    model_.layers.resize(1);
  }
  void MakeContents(uint64_t budget_bytes) {
    Open(WeightFormat::kBF16);
    contents_ = std::make_unique<ExpertContents>(
        ExpertContents::Options{&model_,
                                [this](ExpertSlot, const std::stop_token&) {
                                  return backend_->Load(packed_[0]);
                                },
                                static_cast<size_t>(backend_->expert_bytes()),
                                budget_bytes},
        ExpertContents::Metrics{}, &live_);
  }
  absl::Status Load(int64_t first, int64_t last) {
    std::vector<ExpertSlot> slots;
    for (int64_t e = first; e < last; ++e) slots.push_back({0, e});
    return contents_->Load(slots, 0, {});
  }

  ModelConfig model_;
  LiveWeights live_{std::make_shared<ExpertWeights>(
      1, 64, std::vector<ExpertSlot>(), std::vector<PackedExpert>())};
  std::unique_ptr<ExpertContents> contents_;
};

TEST_F(CudaContentsTest, WhatTheDeviceHasNoMemoryForChangesNothing) {
  MakeContents(0);
  ASSERT_TRUE(Load(0, 2).ok());
  const size_t used = cuda_emulation::DeviceBytesInUse();
  cuda_emulation::SetDeviceMemory(
      used + 3 * static_cast<size_t>(backend_->expert_bytes()));
  const absl::Status status = Load(2, 10);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("there is no memory left for expert "));
  EXPECT_EQ(live_.Get()->slots().size(), 2u);
  EXPECT_EQ(cuda_emulation::DeviceBytesInUse(), used);
  // What is there goes on.
  const Batch batch(ffn(), {live_.Get()->Find(0, 1)}, {4}, DType::kBF16, 1);
  EXPECT_TRUE(ffn().Run(batch.rows()).ok());
  EXPECT_TRUE(Load(2, 3).ok());
}

TEST_F(CudaContentsTest, TheBudgetSaysHowManyFit) {
  MakeContents(static_cast<uint64_t>(1 << 20));
  const int64_t fit = (1 << 20) / backend_->expert_bytes();
  const absl::Status status = Load(0, fit + 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("has room for " + std::to_string(fit)));
  EXPECT_TRUE(Load(0, fit).ok());
}

TEST_F(CudaBackendTest, TheBudgetIsAFractionOfTheDeviceAndWhatIsFree) {
  Open(WeightFormat::kBF16);
  const int64_t all = backend_->budget_bytes();
  backend_.reset();
  experts_.clear();
  EXPECT_GT(all, (int64_t{1} << 30) * 8 / 10);
  EXPECT_LT(all, (int64_t{1} << 30) * 9 / 10);
  CudaBackendOptions options = Options(WeightFormat::kBF16);
  options.memory_fraction = 0.5;
  const auto half = OpenCudaBackend(options);
  ASSERT_TRUE(half.ok());
  EXPECT_LT((*half)->budget_bytes(), all * 5 / 9 + 1);
}

TEST_F(CudaBackendTest, OthersOnTheDeviceKeepTheirMemory) {
  Open(WeightFormat::kBF16);
  const int64_t all = backend_->budget_bytes();
  void* others = nullptr;
  ASSERT_EQ(cudaMalloc(&others, size_t{1} << 29), cudaSuccess);
  CudaBackendOptions options = Options(WeightFormat::kBF16);
  options.memory_fraction = 1.0;
  const auto backend = OpenCudaBackend(options);
  cudaFree(others);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_LT((*backend)->budget_bytes(), all - (int64_t{1} << 28));
}

TEST_F(CudaBackendTest, WaitingLeavesNoErrorBehind) {
  Open(WeightFormat::kBF16);
  const Batch batch(ffn(), {experts_[0].get()}, {4}, DType::kBF16, 1);
  ASSERT_TRUE(ffn().Run(batch.rows()).ok());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(CudaBackendTest, AWorkspaceThatDoesNotFitIsRefused) {
  cuda_emulation::SetDeviceMemory(size_t{1} << 20);
  CudaBackendOptions options = Options(WeightFormat::kBF16);
  options.max_rows = 1 << 16;
  const auto backend = OpenCudaBackend(options);
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(backend.status().message()),
              HasSubstr("--max-batch-rows: 65536"));
}

}  // namespace
}  // namespace expertmesh::expert
