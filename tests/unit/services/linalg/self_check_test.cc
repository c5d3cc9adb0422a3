#include "services/linalg/self_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

PackedMatrix Matrix(WeightFormat format) {
  const TypedValues w(RandomFloats(130 * 100, 1), DType::kF32);
  return *PackedMatrix::Pack(w.View(130, 100), format);
}

TEST(SelfCheckTest, EveryKernelOfThisMachinePasses) {
  for (const Isa isa : AvailableIsas()) {
    const ScopedIsa scoped(isa);
    for (const WeightFormat format :
         {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8,
          WeightFormat::kInt4}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const absl::Status status = CheckRowsAgree(Matrix(format), dtype);
        EXPECT_TRUE(status.ok()) << status;
      }
    }
  }
}

// A library that takes another way for one row, and is off by one bit there.
TEST(SelfCheckTest, FindsOneBitInTheLastPanel) {
  const auto product = [](const ActivationView& x, int64_t num_rows,
                          const PackedMatrix& w, int64_t panel, float* y,
                          int64_t y_stride) {
    GemmPanel(x, num_rows, w, panel, y, y_stride);
    if (num_rows == 1 && panel == 2) y[1] = std::nextafter(y[1], 1e9f);
  };
  const absl::Status status =
      CheckRowsAgree(Matrix(WeightFormat::kBF16), DType::kBF16, product);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("[130, 100] bf16"));
}

TEST(SelfCheckTest, NothingToMultiply) {
  EXPECT_TRUE(CheckRowsAgree(PackedMatrix(), DType::kF32).ok());
}

}  // namespace
}  // namespace expertmesh
