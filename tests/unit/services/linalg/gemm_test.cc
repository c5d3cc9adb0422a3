#include "services/linalg/gemm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

using ::testing::Each;

constexpr DType kWeightTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr DType kActTypes[] = {DType::kF32, DType::kBF16};
constexpr float kUntouched = 12345.0f;

// Weights, and rows of activations that lie `x_gap` elements apart.
struct Problem {
  Problem(int64_t rows, int64_t n, int64_t k, DType act, DType weight,
          int64_t x_gap = 0)
      : rows(rows),
        n(n),
        k(k),
        x_stride(k + x_gap),
        x(RandomFloats(rows * x_stride, 11), act),
        w(RandomFloats(n * k, 12), weight),
        packed(*PackedMatrix::Pack(w.View(n, k))) {}

  ActivationView View(int64_t first_row = 0) const {
    return {x.bytes.data() + first_row * x_stride * DTypeBytes(x.dtype),
            x.dtype, x_stride};
  }

  // The contract of gemm.h for f32 activations, word for word.
  float FmaChain(int64_t row, int64_t column) const {
    float sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum = std::fma(x.f32[row * x_stride + i], w.f32[column * k + i], sum);
    }
    return sum;
  }

  double Exact(int64_t row, int64_t column) const {
    double sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum += static_cast<double>(x.f32[row * x_stride + i]) *
             w.f32[column * k + i];
    }
    return sum;
  }

  int64_t rows, n, k, x_stride;
  TypedValues x, w;
  PackedMatrix packed;
};

std::vector<float> Product(const Problem& problem) {
  std::vector<float> y(problem.rows * problem.n);
  GemmPanels(problem.View(), problem.rows, problem.packed, 0,
             problem.packed.num_panels(), y.data(), problem.n);
  return y;
}

class GemmTest : public ::testing::TestWithParam<Isa> {
 protected:
  const ScopedIsa isa_{GetParam()};
};

TEST_P(GemmTest, F32ActivationsFollowTheChainToTheBit) {
  for (const DType weight : kWeightTypes) {
    for (const auto& [n, k] : {std::pair{1, 1},
                               {3, 7},
                               {64, 16},
                               {65, 33},
                               {130, 2},
                               {63, 101},
                               {40, 1025},
                               {64, 2050}}) {
      const Problem problem(7, n, k, DType::kF32, weight, 3);
      const std::vector<float> y = Product(problem);
      for (int64_t row = 0; row < problem.rows; ++row) {
        for (int64_t column = 0; column < n; ++column) {
          ASSERT_EQ(BitsOf(y[row * n + column]),
                    BitsOf(problem.FmaChain(row, column)))
              << DTypeName(weight) << " n " << n << " k " << k << " at " << row
              << ", " << column;
        }
      }
    }
  }
}

TEST_P(GemmTest, BF16ActivationsAreCloseToExact) {
  for (const DType weight : kWeightTypes) {
    for (const auto& [n, k] :
         {std::pair{1, 1}, {3, 7}, {65, 33}, {130, 2}, {70, 1029}}) {
      const Problem problem(7, n, k, DType::kBF16, weight, 5);
      const std::vector<float> y = Product(problem);
      for (int64_t row = 0; row < problem.rows; ++row) {
        for (int64_t column = 0; column < n; ++column) {
          ASSERT_NEAR(y[row * n + column], problem.Exact(row, column),
                      1e-6 * k + 1e-6)
              << DTypeName(weight) << " n " << n << " k " << k << " at " << row
              << ", " << column;
        }
      }
    }
  }
}

TEST_P(GemmTest, ARowHasTheSameBitsInEveryBatch) {
  for (const DType act : kActTypes) {
    for (const DType weight : kWeightTypes) {
      const Problem problem(33, 97, 1031, act, weight);
      std::vector<float> alone(problem.rows * problem.n);
      for (int64_t row = 0; row < problem.rows; ++row) {
        GemmPanels(problem.View(row), 1, problem.packed, 0,
                   problem.packed.num_panels(), &alone[row * problem.n],
                   problem.n);
      }
      for (int64_t rows = 2; rows <= problem.rows; ++rows) {
        std::vector<float> together(rows * problem.n);
        GemmPanels(problem.View(), rows, problem.packed, 0,
                   problem.packed.num_panels(), together.data(), problem.n);
        std::vector<float> expected(alone.begin(),
                                    alone.begin() + rows * problem.n);
        ASSERT_EQ(BitsOf(together), BitsOf(expected))
            << DTypeName(act) << " x " << DTypeName(weight) << ", " << rows
            << " rows";
      }
    }
  }
}

TEST_P(GemmTest, ThreadsChangeNoBit) {
  for (const DType type : kActTypes) {
    for (const int64_t rows : {1, 50, 200}) {
      const Problem problem(rows, 130, 70, type, type);
      const std::vector<float> expected = Product(problem);
      for (const int threads : {1, 2, 5}) {
        WorkerPool pool(threads);
        std::vector<float> y(rows * problem.n, kUntouched);
        Gemm(problem.View(), rows, problem.packed, y.data(), problem.n, pool);
        EXPECT_EQ(BitsOf(y), BitsOf(expected))
            << rows << " rows, " << threads << " threads";
      }
    }
  }
}

TEST_P(GemmTest, WritesOnlyTheColumnsOfItsPanels) {
  const Problem problem(3, 150, 9, DType::kF32, DType::kBF16);
  const int64_t stride = 160;
  std::vector<float> y(3 * stride, kUntouched);
  GemmPanels(problem.View(), 3, problem.packed, 2, 3, y.data(), stride);
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t column = 0; column < stride; ++column) {
      const bool written = column >= 128 && column < 150;
      EXPECT_EQ(y[row * stride + column],
                written ? problem.FmaChain(row, column) : kUntouched)
          << row << ", " << column;
    }
  }
}

TEST_P(GemmTest, NoRowsAndNoK) {
  WorkerPool pool(2);
  const Problem no_rows(0, 10, 4, DType::kF32, DType::kF32);
  Gemm(no_rows.View(), 0, no_rows.packed, nullptr, 10, pool);
  const Problem no_k(2, 10, 0, DType::kF32, DType::kF32);
  std::vector<float> y(20, kUntouched);
  Gemm(no_k.View(), 2, no_k.packed, y.data(), 10, pool);
  EXPECT_THAT(y, Each(0.0f));
}

TEST_P(GemmTest, NonFiniteWeightsStayInTheirColumn) {
  for (const DType weight : kWeightTypes) {
    std::vector<float> values = RandomFloats(4 * 6, 5);
    TypedValues w(values, weight);
    // Column 2: an infinity.
    const uint32_t f32 = 0x7f800000u;
    const uint16_t half = weight == DType::kBF16 ? 0x7f80 : 0x7c00;
    std::memcpy(w.bytes.data() + 13 * DTypeBytes(weight),
                weight == DType::kF32 ? static_cast<const void*>(&f32) : &half,
                DTypeBytes(weight));
    const PackedMatrix packed = *PackedMatrix::Pack(w.View(4, 6));
    const std::vector<float> x(6, 1.0f);
    std::vector<float> y(4);
    GemmPanels({x.data(), DType::kF32, 6}, 1, packed, 0, 1, y.data(), 4);
    EXPECT_EQ(y[2], INFINITY) << DTypeName(weight);
    for (const int column : {0, 1, 3}) EXPECT_TRUE(std::isfinite(y[column]));
  }
}

INSTANTIATE_TEST_SUITE_P(EachIsa, GemmTest,
                         ::testing::ValuesIn(AvailableIsas()), IsaTestName);

// Every pattern of binary16 widens exactly in every instruction set.
TEST(GemmF16Test, WidensEveryPattern) {
  std::vector<uint16_t> weight(1 << 16);
  for (size_t i = 0; i < weight.size(); ++i) {
    weight[i] = static_cast<uint16_t>(i);
  }
  const int64_t n = static_cast<int64_t>(weight.size());
  const PackedMatrix packed = *PackedMatrix::Pack(TensorView{
      reinterpret_cast<const std::byte*>(weight.data()), DType::kF16, {n, 1}});
  const float one = 1.0f;
  for (const Isa isa : AvailableIsas()) {
    const ScopedIsa scoped(isa);
    std::vector<float> y(n);
    GemmPanels({&one, DType::kF32, 1}, 1, packed, 0, packed.num_panels(),
               y.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      const float expected = F16ToF32(weight[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(y[i])) << IsaNameOf(isa) << " " << i;
      } else {
        ASSERT_EQ(y[i], expected) << IsaNameOf(isa) << " " << i;
      }
    }
  }
}

TEST(IsaTest, TheTableInUseIsNamed) {
  EXPECT_EQ(IsaName(), IsaNameOf(ActiveIsa()));
  for (const Isa isa : AvailableIsas()) {
    const ScopedIsa scoped(isa);
    EXPECT_EQ(&ActiveKernels(), KernelsFor(isa));
    EXPECT_EQ(IsaName(), IsaNameOf(isa));
  }
}

}  // namespace
}  // namespace expertmesh
