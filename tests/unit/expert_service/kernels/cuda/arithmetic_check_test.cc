// What is said of a device that computes wrongly.

#include "expert_service/kernels/cuda/arithmetic_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace expertmesh::expert {
namespace {

using ::testing::HasSubstr;

// Outputs as they come back, and how many rows they are.
using Damage = std::function<void(std::byte* y, uint32_t rows)>;

class DamagedFfn final : public GroupedFfn {
 public:
  DamagedFfn(GroupedFfn* inner, Damage damage)
      : inner_(*inner), damage_(std::move(damage)) {}

  RowBuffer NewRowBuffer(size_t bytes) override {
    return inner_.NewRowBuffer(bytes);
  }
  absl::Status Start(const GroupedRows& rows) override {
    const absl::Status status = inner_.Run(rows);
    damage_(static_cast<std::byte*>(rows.y),
            rows.reduction == nullptr ? rows.group_offsets.back() : 0);
    return status;
  }

 private:
  GroupedFfn& inner_;
  const Damage damage_;
};

class DamagedBackend final : public CudaBackend {
 public:
  DamagedBackend(const CudaBackendOptions& options, Damage damage)
      : inner_(*OpenCudaBackend(options)),
        ffn_(&inner_->ffn(), std::move(damage)) {}

  int64_t expert_bytes() const override { return inner_->expert_bytes(); }
  int64_t budget_bytes() const override { return inner_->budget_bytes(); }
  bool takes_tensors() const override { return inner_->takes_tensors(); }
  absl::StatusOr<std::shared_ptr<const LoadedExpert>> Load(
      const ExpertTensors& tensors) override {
    return inner_->Load(tensors);
  }
  absl::StatusOr<std::shared_ptr<const LoadedExpert>> Load(
      const PackedExpert& expert) override {
    return inner_->Load(expert);
  }
  GroupedFfn& ffn() override { return ffn_; }

 private:
  const std::unique_ptr<CudaBackend> inner_;
  DamagedFfn ffn_;
};

absl::Status Check(Damage damage, bool is_fast = false) {
  CudaBackendOptions options;
  options.format = WeightFormat::kBF16;
  options.is_fast = is_fast;
  options = CheckedOptions(options);
  DamagedBackend backend(options, std::move(damage));
  return CheckArithmetic(options, backend);
}

TEST(ArithmeticCheckTest, FindsNothingWhereNothingIs) {
  EXPECT_TRUE(Check([](std::byte*, uint32_t) {}).ok());
}

TEST(ArithmeticCheckTest, FindsWrongOutputs) {
  const absl::Status status = Check([](std::byte* y, uint32_t rows) {
    if (rows > 1) std::swap_ranges(y, y + 20000, y + 20000);
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("outputs of bf16 experts are off by "));
}

TEST(ArithmeticCheckTest, FindsOutputsThatAreNoNumbers) {
  const absl::Status status =
      Check([](std::byte* y, uint32_t) { y[0] = y[1] = std::byte{0xff}; });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
}

TEST(ArithmeticCheckTest, FindsWrongSums) {
  const auto damage = [](std::byte* y, uint32_t rows) {
    constexpr size_t kLoneBytes = 584 * 2;
    if (rows == 0) y[RowReduction::SumsAt(kLoneBytes)] ^= std::byte{1};
  };
  const absl::Status status = Check(damage);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("sums of rows"));
  EXPECT_TRUE(Check(damage, /*is_fast=*/true).ok());
}

TEST(ArithmeticCheckTest, FindsBitsThatDependOnOtherRows) {
  const auto damage = [](std::byte* y, uint32_t rows) {
    if (rows == 1) y[0] ^= std::byte{1};
  };
  const absl::Status status = Check(damage);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("depend on other rows"));
  EXPECT_TRUE(Check(damage, /*is_fast=*/true).ok());
}

}  // namespace
}  // namespace expertmesh::expert
