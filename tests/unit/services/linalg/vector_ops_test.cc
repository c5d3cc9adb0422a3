#include "services/linalg/vector_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kSizes[] = {0, 1, 7, 15, 16, 17, 33, 100, 128};

// Distance in representable values, between finite floats of equal sign.
int64_t Ulps(float a, float b) {
  return std::abs(static_cast<int64_t>(BitsOf(a)) -
                  static_cast<int64_t>(BitsOf(b)));
}

// Every 2^10-th float and the special ones.
std::vector<float> ManyFloats() {
  std::vector<float> values;
  for (uint64_t bits = 0; bits < (1ull << 32); bits += 1021) {
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  for (const float value :
       {0.0f, -0.0f, kInf, -kInf, std::numeric_limits<float>::quiet_NaN(),
        std::bit_cast<float>(0x7f800001u), std::bit_cast<float>(0xffffffffu),
        88.7228f, 88.7229f, -87.3365f, -103.97f, -104.0f}) {
    values.push_back(value);
  }
  return values;
}

class VectorOpsTest : public ::testing::TestWithParam<Isa> {
 protected:
  const ScopedIsa isa_{GetParam()};
};

TEST_P(VectorOpsTest, ExpIsWithinTwoUlps) {
  const std::vector<float> x = ManyFloats();
  std::vector<float> y(x.size());
  Exp(x.data(), x.size(), y.data());
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      ASSERT_TRUE(std::isnan(y[i])) << i;
      continue;
    }
    const float expected =
        static_cast<float>(std::exp(static_cast<double>(x[i])));
    ASSERT_LE(Ulps(y[i], expected), 2) << x[i] << ": " << y[i];
  }
}

TEST_P(VectorOpsTest, BF16RoundsAsTheScalarAndBack) {
  const std::vector<float> x = ManyFloats();
  std::vector<BF16> rounded(x.size());
  std::vector<float> widened(x.size());
  ConvertToBF16(x.data(), x.size(), rounded.data());
  ConvertToF32(rounded.data(), x.size(), widened.data());
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(rounded[i].bits, ToBF16(x[i]).bits) << x[i];
    ASSERT_EQ(BitsOf(widened[i]), BitsOf(ToF32(rounded[i]))) << x[i];
  }
}

TEST_P(VectorOpsTest, SumsOfSpans) {
  for (const int64_t n : kSizes) {
    const std::vector<float> x = RandomFloats(n, 1);
    const std::vector<float> start = RandomFloats(n, 2);
    std::vector<float> added = start, scaled = start, scaled_half = start;
    const TypedValues half(x, DType::kBF16);
    Add(x.data(), n, added.data());
    AddScaled(0.3f, x.data(), n, scaled.data());
    AddScaledBF16(0.3f, reinterpret_cast<const BF16*>(half.bytes.data()), n,
                  scaled_half.data());
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(added[i], start[i] + x[i]);
      const float product = 0.3f * x[i];
      EXPECT_EQ(scaled[i], start[i] + product);
      const float half_product = 0.3f * half.f32[i];
      EXPECT_EQ(scaled_half[i], start[i] + half_product);
    }
  }
}

TEST_P(VectorOpsTest, SignedCodesAreTheOthersWithout128) {
  for (const int64_t n : kSizes) {
    const std::vector<float> x = RandomFloats(n, 8, 3.0f);
    std::vector<uint8_t> shifted(n + 64);
    std::vector<int8_t> codes(n + 16, 77);
    const float scale = QuantizeRow(x.data(), n, shifted.data());
    EXPECT_EQ(BitsOf(QuantizeRow(x.data(), n, codes.data())), BitsOf(scale));
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(codes[i], shifted[i] - 128);
    for (size_t i = n; i < codes.size(); ++i) EXPECT_EQ(codes[i], 77);
  }
}

TEST_P(VectorOpsTest, CodesTimesTheirScale) {
  for (const int64_t n : kSizes) {
    std::vector<int8_t> codes(n);
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(37 * i + 5);
    const std::vector<float> start = RandomFloats(n, 9);
    std::vector<float> widened(n), sums = start;
    std::vector<BF16> half(n);
    DequantizeRow(0.0123f, codes.data(), n, widened.data());
    DequantizeRow(0.0123f, codes.data(), n, half.data());
    AddScaledCodes(0.3f, 0.0123f, codes.data(), n, sums.data());
    for (int64_t i = 0; i < n; ++i) {
      const float value = 0.0123f * static_cast<float>(codes[i]);
      EXPECT_EQ(widened[i], value);
      EXPECT_EQ(half[i].bits, ToBF16(value).bits);
      const float product = 0.3f * value;
      EXPECT_EQ(sums[i], start[i] + product);
    }
  }
}

TEST_P(VectorOpsTest, RmsNormMatchesItsFormula) {
  for (const int64_t n : {1, 7, 16, 24, 100, 1000}) {
    const std::vector<float> x = RandomFloats(n, 3, 5.0f);
    const std::vector<float> weight = RandomFloats(n, 4);
    double squares = 0;
    for (const float v : x) squares += static_cast<double>(v) * v;
    const double scale = 1 / std::sqrt(squares / n + 1e-5);
    std::vector<float> y(n);
    std::vector<BF16> half(n);
    RmsNorm(x.data(), weight.data(), 1e-5f, n, y.data());
    RmsNorm(x.data(), weight.data(), 1e-5f, n, half.data());
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(y[i], x[i] * scale * weight[i], 2e-6);
      EXPECT_EQ(half[i].bits, ToBF16(y[i]).bits);
    }
  }
}

TEST_P(VectorOpsTest, SiluMulMatchesItsFormula) {
  for (const int64_t n : kSizes) {
    const std::vector<float> gate = RandomFloats(n, 5, 20.0f);
    const std::vector<float> up = RandomFloats(n, 6);
    std::vector<float> y(n);
    std::vector<BF16> half(n);
    SiluMul(gate.data(), up.data(), n, y.data());
    SiluMul(gate.data(), up.data(), n, half.data());
    for (int64_t i = 0; i < n; ++i) {
      const double g = gate[i];
      const double expected = g / (1 + std::exp(-g)) * up[i];
      EXPECT_NEAR(y[i], expected, 1e-6 * std::abs(expected) + 1e-12);
      EXPECT_EQ(half[i].bits, ToBF16(y[i]).bits);
    }
  }
  const float gate[] = {-200.0f, 200.0f, 0.0f};
  const float up[] = {1.0f, 1.0f, 1.0f};
  float y[3];
  SiluMul(gate, up, 3, y);
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], 200.0f);
  EXPECT_EQ(y[2], 0.0f);
}

TEST_P(VectorOpsTest, SoftmaxMatchesItsFormula) {
  for (const int64_t n : kSizes) {
    const std::vector<float> x = RandomFloats(n, 7, 30.0f);
    double sum = 0;
    for (const float v : x) sum += std::exp(static_cast<double>(v));
    std::vector<float> y = x;
    Softmax(y.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(y[i], std::exp(static_cast<double>(x[i])) / sum, 1e-6);
    }
  }
  float masked[] = {-kInf, 3.0f, -kInf};
  Softmax(masked, 3);
  EXPECT_EQ(masked[0], 0.0f);
  EXPECT_EQ(masked[1], 1.0f);
}

TEST_P(VectorOpsTest, DotMatchesItsFormula) {
  for (const int64_t n : kSizes) {
    const std::vector<float> x = RandomFloats(n, 8), y = RandomFloats(n, 9);
    const double expected =
        std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
    EXPECT_NEAR(Dot(x.data(), y.data(), n), expected, 1e-5);
  }
}

TEST_P(VectorOpsTest, EqualsThePortableBits) {
  const std::vector<float> gate = RandomFloats(1003, 21, 90.0f);
  const std::vector<float> up = RandomFloats(1003, 22);
  // All results of all operations, one after the other.
  const auto results = [&] {
    const int64_t n = gate.size();
    std::vector<float> all;
    std::vector<float> y(n);
    const auto keep = [&] { all.insert(all.end(), y.begin(), y.end()); };
    RmsNorm(gate.data(), up.data(), 1e-6f, n, y.data());
    keep();
    SiluMul(gate.data(), up.data(), n, y.data());
    keep();
    Exp(gate.data(), n, y.data());
    keep();
    y = gate;
    Softmax(y.data(), n);
    keep();
    y = gate;
    AddScaled(1.7f, up.data(), n, y.data());
    keep();
    all.push_back(Dot(gate.data(), up.data(), n));
    return BitsOf(all);
  };
  const auto here = results();
  const ScopedIsa portable(Isa::kPortable);
  EXPECT_EQ(here, results());
}

INSTANTIATE_TEST_SUITE_P(EachIsa, VectorOpsTest,
                         ::testing::ValuesIn(AvailableIsas()), IsaTestName);

}  // namespace
}  // namespace expertmesh
