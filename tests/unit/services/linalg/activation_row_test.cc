#include "services/linalg/activation_row.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "services/linalg/quantized_rows.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kInt8};

std::vector<std::byte> Stored(const std::vector<float>& x, DType dtype) {
  std::vector<std::byte> row(RowBytes(dtype, x.size()) + 8, std::byte{0xab});
  StoreRow(x.data(), static_cast<int64_t>(x.size()), dtype, row.data());
  for (size_t i = row.size() - 8; i < row.size(); ++i) {
    EXPECT_EQ(row[i], std::byte{0xab}) << "written behind the row";
  }
  row.resize(row.size() - 8);
  return row;
}

std::vector<float> Read(const std::vector<std::byte>& row, DType dtype,
                        int64_t n) {
  std::vector<float> x(n, 0.0f);
  AddScaledRow(1.0f, row.data(), dtype, 0, n, x.data());
  return x;
}

TEST(ActivationRow, WhatIsLostIsHalfAStep) {
  for (const int64_t n : {1, 3, 16, 64, 100}) {
    const std::vector<float> x = RandomFloats(n, static_cast<uint32_t>(n));
    for (const DType dtype : kTypes) {
      const std::vector<float> y = Read(Stored(x, dtype), dtype, n);
      float max = 0;
      for (const float value : x) max = std::max(max, std::abs(value));
      for (int64_t i = 0; i < n; ++i) {
        const float most = dtype == DType::kF32    ? 0
                           : dtype == DType::kBF16 ? std::abs(x[i]) / 256
                                                   : max / 253;
        EXPECT_LE(std::abs(y[i] - x[i]), most) << DTypeName(dtype);
      }
    }
  }
}

TEST(ActivationRow, PartsOfARowAreThoseOfTheWhole) {
  const std::vector<float> x = RandomFloats(50, 3);
  for (const DType dtype : kTypes) {
    const std::vector<std::byte> row = Stored(x, dtype);
    const std::vector<float> whole = Read(row, dtype, 50);
    std::vector<float> part(20, 0.0f);
    AddScaledRow(1.0f, row.data(), dtype, 7, 27, part.data());
    EXPECT_EQ(part, std::vector<float>(whole.begin() + 7, whole.begin() + 27));
  }
}

TEST(ActivationRow, RowsOfZerosAndOfTinyValuesAreZero) {
  for (const float tiny : {0.0f, -0.0f, 1e-38f, -1e-42f}) {
    const std::vector<std::byte> row =
        Stored(std::vector<float>(20, tiny), DType::kInt8);
    EXPECT_EQ(row, std::vector<std::byte>(row.size(), std::byte{0}));
    EXPECT_EQ(Read(row, DType::kInt8, 20), std::vector<float>(20, 0.0f));
  }
}

TEST(ActivationRow, AValueThatIsNotFiniteMakesTheRowSo) {
  for (const DType dtype : kTypes) {
    EXPECT_TRUE(IsFiniteRow(Stored({1, 2, 3}, dtype).data(), dtype, 3));
    for (const float bad : {kInf, -kInf, kNaN}) {
      const std::vector<std::byte> row = Stored({1, bad, 3}, dtype);
      EXPECT_FALSE(IsFiniteRow(row.data(), dtype, 3));
      EXPECT_FALSE(std::isfinite(Read(row, dtype, 3)[1]));
    }
  }
  // In codes there is one scale for them all.
  for (const float y :
       Read(Stored({0, kInf, 3}, DType::kInt8), DType::kInt8, 3)) {
    EXPECT_TRUE(std::isnan(y));
  }
}

// Rows in codes become what quantized weights take from the f32 rows.
TEST(ActivationRow, CodesAreThoseOfQuantizedRows) {
  constexpr int64_t kRows = 200;
  constexpr int64_t kK = 70;
  std::vector<float> x = RandomFloats(kRows * kK, 5);
  for (int64_t row = 0; row < kRows; ++row) {
    // Of all magnitudes.
    const float scale = std::ldexp(1.0f, static_cast<int>(row - 100));
    for (int64_t i = 0; i < kK; ++i) x[row * kK + i] *= scale;
  }
  x[13] = kNaN;
  x[kK] = std::numeric_limits<float>::max();
  QuantizedRows from_f32(kRows, kK), from_codes(kRows, kK);
  std::vector<std::byte> row(RowBytes(DType::kInt8, kK));
  for (int64_t r = 0; r < kRows; ++r) {
    from_f32.Store(r, &x[r * kK]);
    StoreRow(&x[r * kK], kK, DType::kInt8, row.data());
    const CodedRow coded = ReadCodedRow(row.data());
    from_codes.StoreCodes(r, coded.scale, coded.codes);
    const QuantizedView a = from_f32.view(r), b = from_codes.view(r);
    EXPECT_EQ(BitsOf(a.scales[0]), BitsOf(b.scales[0])) << r;
    EXPECT_EQ(std::memcmp(a.codes, b.codes, PaddedQuantizedK(kK)), 0) << r;
  }
}

}  // namespace
}  // namespace expertmesh
