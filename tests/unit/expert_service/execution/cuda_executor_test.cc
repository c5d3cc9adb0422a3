// The executor over an emulated device: the whole way of a batch's rows.

#include <gtest/gtest.h>

#include "expert_service/kernels/cuda/cuda_backend.h"
#include "tests/support/cuda_emulation/control.h"
#include "tests/unit/expert_service/execution/executor_fixture.h"

namespace expertmesh::expert {
namespace {

class CudaExecutorTest : public ExecutorFixture {
 protected:
  CudaExecutorTest() : backend_(Open(kMaxRows)), alone_(Open(1000)) {
    weights_ = MakeWeights(
        [this](const PackedExpert& expert) { return *backend_->Load(expert); });
    live_.Replace(std::make_shared<ExpertWeights>(weights_));
  }
  ~CudaExecutorTest() override {
    executor_.reset();
    cuda_emulation::ClearFault();
  }

  static std::unique_ptr<CudaBackend> Open(int64_t max_rows) {
    CudaBackendOptions options;
    options.hidden_size = kHidden;
    options.intermediate_size = kIntermediate;
    options.format = WeightFormat::kF32;
    options.max_rows = max_rows;
    options.max_groups = kExperts;
    return *OpenCudaBackend(options);
  }
  void ExpectAllRightOnDevice() {
    for (const auto& work : works_) {
      const absl::Status status = work->Await();
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(work->Bytes(), work->Expected(weights_, alone_->ffn()));
    }
  }

  std::unique_ptr<CudaBackend> backend_;
  std::unique_ptr<CudaBackend> alone_;
};

TEST_F(CudaExecutorTest, BitsDependOnNoCompany) {
  for (uint32_t i = 0; i < 10; ++i) {
    Add(a_, i % 2, DType::kF32, {0, 2}, {1 + i % 3, 40 * (i % 2)}, i % 3);
    Add(b_, i % 2, i % 4 == 0 ? DType::kInt8 : DType::kBF16, {1, 2}, {9, i});
  }
  Start(&backend_->ffn());
  ExpectAllRightOnDevice();
}

TEST_F(CudaExecutorTest, ALostDeviceIsEveryBatchesError) {
  Add(a_, 0, DType::kF32, {0}, {4});
  Start(&backend_->ffn());
  ExpectAllRightOnDevice();
  cuda_emulation::PlanFault({.call = 3, .lasting = true});
  for (uint32_t i = 0; i < 4; ++i) Add(b_, i % 2, DType::kF32, {0}, {4});
  for (size_t i = 1; i < works_.size(); ++i) {
    EXPECT_EQ(works_[i]->Await().code(), absl::StatusCode::kInternal);
    EXPECT_FALSE(works_[i]->has_rows());
  }
  executor_.reset();
  EXPECT_EQ(faults_.size(), 1u);
}

}  // namespace
}  // namespace expertmesh::expert
