// Memory that ends and calls that fail, by way of the emulation.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "expert_service/weights/expert_contents.h"
#include "tests/support/cuda_emulation/control.h"
#include "tests/unit/expert_service/kernels/cuda/cuda_backend_fixture.h"

namespace expertmesh::expert {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class EmulatedBackendTest : public CudaBackendTest {
 protected:
  ~EmulatedBackendTest() override {
    cuda_emulation::ClearFault();
    cuda_emulation::SetDeviceMemory(size_t{1} << 30);
  }

  int64_t calls_ = 0;
  std::string y_;  // what came out
};

TEST_F(EmulatedBackendTest, BatchesTakeNoMoreMemory) {
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

// But for calls that record a graph, without which it goes on.
TEST_F(EmulatedBackendTest, AFaultOfAnyCallLosesTheDevice) {
  // A form's first batch in a slot, and the one that records it.
  for (const int earlier_batches : {0, 2}) {
    SCOPED_TRACE(testing::Message() << "after " << earlier_batches);
    const auto run = [&](int64_t fault_at) {
      packed_.clear();
      experts_.clear();
      Open(WeightFormat::kBF16);
      const Batch batch(ffn(), Experts(), {4, 4, 20}, DType::kF32, 1);
      for (int i = 0; i < earlier_batches; ++i) {
        EXPECT_TRUE(ffn().Run(batch.rows()).ok());
      }
      cuda_emulation::PlanFault({.call = fault_at});
      const absl::Status status = ffn().Run(batch.rows());
      calls_ = cuda_emulation::CallsCounted();
      cuda_emulation::ClearFault();
      y_.assign(reinterpret_cast<const char*>(batch.y.get()), batch.bytes);
      if (!status.ok()) {
        EXPECT_EQ(ffn().Start(batch.rows()), status);  // and it lasts
      }
      return status;
    };
    ASSERT_TRUE(run(0).ok());
    const int64_t calls = calls_;
    const std::string wanted = y_;
    int64_t faults = 0;
    for (int64_t call = 1; call <= calls; ++call) {
      const absl::Status fault = run(call);
      if (fault.ok()) {  // or fewer looks at the end were enough
        EXPECT_TRUE(y_ == wanted) << "call " << call;
        continue;
      }
      ++faults;
      EXPECT_EQ(fault.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(fault.message()), StartsWith("device lost: "));
    }
    // The device, the copies, kernels, events or a graph, and waiting for it.
    EXPECT_GE(faults, 9);
  }
}

TEST_F(EmulatedBackendTest, WithALostDeviceBothBatchesEnd) {
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
class CudaContentsTest : public EmulatedBackendTest {
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
  // What is there goes on.
  const Batch batch(ffn(), {live_.Get()->Find(0, 1)}, {4}, DType::kBF16, 1);
  EXPECT_TRUE(ffn().Run(batch.rows()).ok());
  EXPECT_TRUE(Load(2, 3).ok());
}

// To free memory is to wait for whatever the device does.
TEST_F(CudaContentsTest, UnloadedMemoryIsReused) {
  MakeContents(0);
  ASSERT_TRUE(Load(0, 4).ok());
  const size_t used = cuda_emulation::DeviceBytesInUse();
  ASSERT_TRUE(contents_->Unload({{0, 0}, {0, 1}}, 0).ok());
  EXPECT_EQ(cuda_emulation::DeviceBytesInUse(), used);
  ASSERT_TRUE(Load(4, 6).ok());
  EXPECT_EQ(cuda_emulation::DeviceBytesInUse(), used);
  live_.Replace(std::make_shared<ExpertWeights>(
      1, 64, std::vector<ExpertSlot>(), std::vector<PackedExpert>()));
  contents_.reset();
  backend_.reset();
  experts_.clear();
  EXPECT_EQ(cuda_emulation::DeviceBytesInUse(), 0u);
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

TEST_F(EmulatedBackendTest, TheBudgetIsAFractionOfTheDeviceAndWhatIsFree) {
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

TEST_F(EmulatedBackendTest, OthersOnTheDeviceKeepTheirMemory) {
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

TEST_F(EmulatedBackendTest, FastWithoutCublasIsRefused) {
  cuda_emulation::SetCublas(false);
  CudaBackendOptions options = Options(WeightFormat::kBF16);
  options.is_fast = true;
  const auto backend = OpenCudaBackend(options);
  // Others have no use for it.
  options.format = WeightFormat::kInt8;
  const auto int8 = OpenCudaBackend(options);
  cuda_emulation::SetCublas(true);
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(backend.status().message()),
              StartsWith("--numerics=fast: cuBLAS cannot be loaded"));
  EXPECT_TRUE(int8.ok()) << int8.status();
}

TEST_F(EmulatedBackendTest, AWorkspaceThatDoesNotFitIsRefused) {
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
