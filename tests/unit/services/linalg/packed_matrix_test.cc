#include <gtest/gtest.h>

#include "services/linalg/gemm.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

TEST(PackedMatrixTest, PutsF32InPanelsOf64Outputs) {
  const TypedValues weight(RandomFloats(70 * 3, 1), DType::kF32);
  const auto packed = PackedMatrix::Pack(weight.View(70, 3));
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ(packed->n(), 70);
  EXPECT_EQ(packed->k(), 3);
  EXPECT_EQ(packed->num_panels(), 2);
  EXPECT_EQ(packed->size_bytes(), 2u * 3 * 64 * 4);
  for (int64_t n = 0; n < 128; ++n) {
    const auto* panel = reinterpret_cast<const float*>(packed->panel(n / 64));
    for (int64_t k = 0; k < 3; ++k) {
      const float expected = n < 70 ? weight.f32[n * 3 + k] : 0.0f;
      EXPECT_EQ(panel[k * 64 + n % 64], expected) << n << ", " << k;
    }
  }
}

TEST(PackedMatrixTest, PutsBF16InPairsOfK) {
  const TypedValues weight(RandomFloats(65 * 5, 2), DType::kBF16);
  const auto packed = PackedMatrix::Pack(weight.View(65, 5));
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ(packed->size_bytes(), 2u * 16 * 64 * 4);  // k padded to 32
  for (int64_t n = 0; n < 128; ++n) {
    const auto* panel = reinterpret_cast<const BF16*>(packed->panel(n / 64));
    for (int64_t k = 0; k < 32; ++k) {
      const float expected = n < 65 && k < 5 ? weight.f32[n * 5 + k] : 0.0f;
      EXPECT_EQ(ToF32(panel[k / 2 * 128 + n % 64 * 2 + k % 2]), expected)
          << n << ", " << k;
    }
  }
}

TEST(PackedMatrixTest, StacksPartsAndReadsUnalignedMemory) {
  const std::vector<float> rows = RandomFloats(5 * 4, 3);
  std::vector<std::byte> file(rows.size() * 4 + 1);
  std::memcpy(file.data() + 1, rows.data(), rows.size() * 4);
  const TensorView whole = {file.data() + 1, DType::kF32, {5, 4}};
  const TensorView parts[] = {
      {file.data() + 1, DType::kF32, {2, 4}},
      {file.data() + 1 + 2 * 4 * 4, DType::kF32, {3, 4}}};
  const auto stacked = PackedMatrix::Pack(parts);
  const auto packed = PackedMatrix::Pack(whole);
  ASSERT_TRUE(stacked.ok() && packed.ok());
  ASSERT_EQ(stacked->size_bytes(), packed->size_bytes());
  EXPECT_EQ(
      std::memcmp(stacked->panel(0), packed->panel(0), packed->size_bytes()),
      0);
}

TEST(PackedMatrixTest, ConvertsExactlyOrRounded) {
  const std::vector<float> values = {1.0f, -0.0f, 1.00390625f, 1.01171875f,
                                     65504.0f};
  // Halfway cases go to the even neighbour: 1 + 2^-8 down, 1 + 3·2^-8 up.
  const float rounded[] = {1.0f, -0.0f, 1.0f, 1.015625f, 65536.0f};
  const TypedValues f32(values, DType::kF32);
  const auto bf16 = PackedMatrix::Pack(f32.View(1, 5), WeightFormat::kBF16);
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  const auto* halves = reinterpret_cast<const BF16*>(bf16->panel(0));
  const TypedValues f16(values, DType::kF16);
  const auto wide = PackedMatrix::Pack(f16.View(1, 5), WeightFormat::kF32);
  ASSERT_TRUE(wide.ok()) << wide.status();
  const auto* floats = reinterpret_cast<const float*>(wide->panel(0));
  for (int k = 0; k < 5; ++k) {
    EXPECT_EQ(ToF32(halves[k / 2 * 128 + k % 2]), rounded[k]);
    EXPECT_EQ(floats[k * 64], f16.f32[k]);
  }
}

TEST(PackedMatrixTest, RefusesWhatDoesNotFit) {
  const TypedValues weight(RandomFloats(12, 4), DType::kF32);
  const TypedValues half(RandomFloats(12, 4), DType::kBF16);
  const auto code = [](const std::vector<TensorView>& parts) {
    return PackedMatrix::Pack(parts).status().code();
  };
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{weight.bytes.data(), DType::kF32, {12}}}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({weight.View(3, 4), weight.View(4, 3)}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({weight.View(3, 4), half.View(3, 4)}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      PackedMatrix::Pack(weight.View(3, 4), WeightFormat::kF16).status().code(),
      absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertmesh
