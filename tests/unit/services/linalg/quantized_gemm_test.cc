// Products with int8 and int4 weights against a reference that reads the panels
// by their documented layout and sums plain integers.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "services/linalg/gemm.h"
#include "services/linalg/vector_ops.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8, WeightFormat::kInt4};
constexpr float kUntouched = 12345.0f;

// A weight in whole multiples of its output's scale, as panel_layout.h says.
int WeightInScales(const PackedMatrix& w, int64_t n, int64_t k) {
  const auto* panel =
      reinterpret_cast<const uint8_t*>(w.panel(n / kPanelWidth)) +
      sizeof(QuantizedPanelHeader);
  const int64_t column = n % kPanelWidth;
  if (w.format() == WeightFormat::kInt8) {
    return static_cast<int8_t>(
        panel[k / 4 * kPanelWidth * 4 + column * 4 + k % 4]);
  }
  const uint8_t* block = panel + k / 64 * kInt4BlockBytes;
  const uint8_t step = block[k % 64 / 32 * kPanelWidth + column];
  const uint8_t codes = block[2 * kPanelWidth + k % 64 / 8 * kPanelWidth * 4 +
                              column * 4 + k % 4];
  const int zero = step < 16 ? 8 : 7;
  return ((codes >> (k % 8 < 4 ? 0 : 4) & 15) - zero) * (step % 16);
}

float ScaleOf(const PackedMatrix& w, int64_t n) {
  return reinterpret_cast<const QuantizedPanelHeader*>(w.panel(n / kPanelWidth))
      ->scales[n % kPanelWidth];
}

struct QuantizedRows {
  QuantizedRows(const std::vector<float>& x, int64_t rows, int64_t k)
      : stride(PaddedQuantizedK(k)), codes(rows * stride), scales(rows) {
    for (int64_t row = 0; row < rows; ++row) {
      scales[row] = QuantizeRow(&x[row * k], k, &codes[row * stride]);
    }
  }

  ActivationView View(int64_t first = 0) const {
    return {.quantized = {&codes[first * stride], &scales[first], stride}};
  }

  int64_t stride;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

struct Problem {
  Problem(int64_t rows, int64_t n, int64_t k, WeightFormat format)
      : rows(rows),
        n(n),
        k(k),
        x(RandomFloats(rows * k, 21)),
        w(RandomFloats(n * k, 22), DType::kF32),
        packed(*PackedMatrix::Pack(w.View(n, k), format)),
        quantized(x, rows, k) {}

  float Expected(int64_t row, int64_t column) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum += (quantized.codes[row * quantized.stride + i] - 128) *
             WeightInScales(packed, column, i);
    }
    return static_cast<float>(sum) * ScaleOf(packed, column) *
           quantized.scales[row];
  }

  std::vector<float> Product(int64_t first_row, int64_t count) const {
    std::vector<float> y(count * n);
    GemmPanels(quantized.View(first_row), count, packed, 0, packed.num_panels(),
               y.data(), n);
    return y;
  }

  int64_t rows, n, k;
  std::vector<float> x;
  TypedValues w;
  PackedMatrix packed;
  QuantizedRows quantized;
};

class QuantizedGemmTest : public ::testing::TestWithParam<Isa> {
 protected:
  const ScopedIsa isa_{GetParam()};
};

TEST_P(QuantizedGemmTest, IsTheSumOfIntegersToTheBit) {
  for (const WeightFormat format : kFormats) {
    for (const auto& [n, k] : {std::pair{1, 1},
                               {3, 7},
                               {64, 64},
                               {65, 33},
                               {130, 96},
                               {63, 101},
                               {40, 1025}}) {
      const Problem problem(7, n, k, format);
      const std::vector<float> y = problem.Product(0, 7);
      for (int64_t row = 0; row < 7; ++row) {
        for (int64_t column = 0; column < n; ++column) {
          ASSERT_EQ(BitsOf(y[row * n + column]),
                    BitsOf(problem.Expected(row, column)))
              << WeightFormatName(format) << " n " << n << " k " << k << " at "
              << row << ", " << column;
        }
      }
    }
  }
}

TEST_P(QuantizedGemmTest, ARowHasTheSameBitsInEveryBatch) {
  for (const WeightFormat format : kFormats) {
    const Problem problem(70, 97, 200, format);
    std::vector<float> alone;
    for (int64_t row = 0; row < problem.rows; ++row) {
      const std::vector<float> y = problem.Product(row, 1);
      alone.insert(alone.end(), y.begin(), y.end());
    }
    for (int64_t rows = 2; rows <= problem.rows; ++rows) {
      const std::vector<float> expected(alone.begin(),
                                        alone.begin() + rows * problem.n);
      ASSERT_EQ(BitsOf(problem.Product(0, rows)), BitsOf(expected))
          << WeightFormatName(format) << ", " << rows << " rows";
    }
  }
}

TEST_P(QuantizedGemmTest, WritesOnlyTheColumnsOfItsPanels) {
  for (const WeightFormat format : kFormats) {
    const Problem problem(3, 150, 70, format);
    const int64_t stride = 160;
    std::vector<float> y(3 * stride, kUntouched);
    GemmPanels(problem.quantized.View(), 3, problem.packed, 2, 3, y.data(),
               stride);
    for (int64_t row = 0; row < 3; ++row) {
      for (int64_t column = 0; column < stride; ++column) {
        const bool written = column >= 128 && column < 150;
        EXPECT_EQ(y[row * stride + column],
                  written ? problem.Expected(row, column) : kUntouched)
            << row << ", " << column;
      }
    }
  }
}

// The largest sums that can be: all codes at their ends.
TEST_P(QuantizedGemmTest, ExtremesDoNotOverflow) {
  constexpr int64_t kK = 4096;
  for (const float sign : {1.0f, -1.0f}) {
    const TypedValues w(std::vector<float>(kK, 3.0f), DType::kF32);
    const std::vector<float> x(kK, sign * 2.0f);
    const QuantizedRows rows(x, 1, kK);
    const PackedMatrix packed =
        *PackedMatrix::Pack(w.View(1, kK), WeightFormat::kInt8);
    float y = 0;
    GemmPanels(rows.View(), 1, packed, 0, 1, &y, 1);
    EXPECT_NEAR(y, sign * 6.0f * kK, 0.01f * kK);
  }
}

TEST_P(QuantizedGemmTest, ThreadsChangeNoBit) {
  for (const WeightFormat format : kFormats) {
    const Problem problem(200, 130, 70, format);
    const std::vector<float> expected = problem.Product(0, problem.rows);
    for (const int threads : {1, 2, 5}) {
      WorkerPool pool(threads);
      std::vector<float> y(problem.rows * problem.n, kUntouched);
      Gemm(problem.quantized.View(), problem.rows, problem.packed, y.data(),
           problem.n, pool);
      EXPECT_EQ(BitsOf(y), BitsOf(expected)) << threads << " threads";
    }
  }
}

TEST_P(QuantizedGemmTest, RowsQuantizeAlikeEverywhere) {
  for (const int64_t n : {1, 15, 16, 17, 64, 100}) {
    const std::vector<float> x = RandomFloats(n, 31, 5.0f);
    std::vector<uint8_t> codes(PaddedQuantizedK(n), 7);
    const float scale = QuantizeRow(x.data(), n, codes.data());
    float max = 0;
    for (const float v : x) max = std::max(max, std::abs(v));
    EXPECT_EQ(BitsOf(scale), BitsOf(max / 127.0f));
    const float inverse = 127.0f / max;
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(codes[i], 128 + std::nearbyint(x[i] * inverse)) << i;
    }
    for (size_t i = n; i < codes.size(); ++i) EXPECT_EQ(codes[i], 128);
  }
}

TEST_P(QuantizedGemmTest, RowsThatAreNotFiniteGiveNaN) {
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    for (const int64_t at : {0, 40, 69}) {
      Problem problem(1, 3, 70, WeightFormat::kInt8);
      problem.x[at] = bad;
      problem.quantized = QuantizedRows(problem.x, 1, 70);
      for (const float y : problem.Product(0, 1)) EXPECT_TRUE(std::isnan(y));
    }
  }
}

TEST_P(QuantizedGemmTest, ZeroRowsAndZeroWeightsGiveZero) {
  for (const WeightFormat format : kFormats) {
    const TypedValues zeros(std::vector<float>(5 * 70, 0.0f), DType::kF32);
    const PackedMatrix packed = *PackedMatrix::Pack(zeros.View(5, 70), format);
    const QuantizedRows ones(std::vector<float>(70, 1.0f), 1, 70);
    std::vector<float> y(5, kUntouched);
    GemmPanels(ones.View(), 1, packed, 0, 1, y.data(), 5);
    EXPECT_EQ(y, std::vector<float>(5, 0.0f));
    Problem problem(1, 5, 70, format);
    const QuantizedRows none(std::vector<float>(70, 0.0f), 1, 70);
    GemmPanels(none.View(), 1, problem.packed, 0, 1, y.data(), 5);
    EXPECT_EQ(y, std::vector<float>(5, 0.0f));
  }
}

INSTANTIATE_TEST_SUITE_P(EachIsa, QuantizedGemmTest,
                         ::testing::ValuesIn(AvailableIsas()), IsaTestName);

// Of weights with a normal distribution, relative to their own size.
double RelativeError(WeightFormat format) {
  constexpr int64_t kN = 32;
  constexpr int64_t kK = 1024;
  std::mt19937 generator(5);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> values(kN * kK);
  for (float& value : values) value = normal(generator);
  const TypedValues w(values, DType::kF32);
  const PackedMatrix packed = *PackedMatrix::Pack(w.View(kN, kK), format);
  double error = 0;
  double square = 0;
  for (int64_t n = 0; n < kN; ++n) {
    for (int64_t k = 0; k < kK; ++k) {
      const double value = values[n * kK + k];
      const double off =
          WeightInScales(packed, n, k) * ScaleOf(packed, n) - value;
      error += off * off;
      square += value * value;
    }
  }
  return std::sqrt(error / square);
}

TEST(QuantizedWeightsTest, WeightsStayClose) {
  EXPECT_LT(RelativeError(WeightFormat::kInt8), 0.009);
  EXPECT_LT(RelativeError(WeightFormat::kInt4), 0.085);
}

TEST(QuantizedWeightsTest, PackedBytesAreThoseOfTheMatrix) {
  for (const WeightFormat format : kFormats) {
    for (const auto& [n, k] : {std::pair{1, 1}, {64, 64}, {65, 129}}) {
      const TypedValues w(RandomFloats(n * k, 3), DType::kF32);
      EXPECT_EQ(PackedBytes(n, k, format),
                static_cast<int64_t>(
                    PackedMatrix::Pack(w.View(n, k), format)->size_bytes()));
    }
  }
}

}  // namespace
}  // namespace expertmesh
