#include "expert_service/kernels/cuda/fragment_layout.h"

#include <gtest/gtest.h>

#include "tests/unit/expert_service/kernels/cuda/cuda_expert.h"

namespace expertmesh::expert {
namespace {

constexpr WeightFormat kTensorFormats[] = {
    WeightFormat::kBF16, WeightFormat::kInt8, WeightFormat::kInt4};

// Reads fragments by what the layout's header says, not by its functions.
class Fragments {
 public:
  Fragments(const CudaTestMatrix& matrix)
      : format_(matrix.format),
        bytes_(matrix.fragments.Read()),
        n_((matrix.n + 63) / 64 * 64),
        k_((matrix.k + 63) / 64 * 64) {}

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  size_t size() const { return bytes_.size(); }

  // For quantized formats in scales.
  double At(int64_t output, int64_t k) const {
    const int64_t tile = output / 16 * (k_ / 64) + k / 64;
    const int g = static_cast<int>(output % 8);
    const bool upper = output % 16 >= 8;
    const int t = static_cast<int>(k % 32 / 8);
    const int lane = 4 * g + t;
    const int half_of_k = static_cast<int>(k % 64 / 32);
    const int mma = half_of_k * 2 + (k % 8 >= 4 ? 1 : 0);
    const int reg = (k % 4 >= 2 ? 2 : 0) + (upper ? 1 : 0);
    const int half = static_cast<int>(k % 2);
    if (format_ == WeightFormat::kBF16) {
      uint16_t bits;
      std::memcpy(
          &bits,
          &bytes_[((tile * 4 + mma) * 32 + lane) * 16 + reg * 4 + half * 2], 2);
      return ToF32(BF16{bits});
    }
    if (format_ == WeightFormat::kInt8) {
      const int64_t word =
          ((tile * 2 + half_of_k) * 32 + lane) * 4 + mma % 2 * 2 + reg / 2;
      return Int8At(word * 4 + half * 2 + reg % 2);
    }
    const int code_index = reg + 4 * half;
    const auto pair = static_cast<uint8_t>(
        bytes_[((tile * 32 + lane) * 4 + mma) * 4 + code_index / 2]);
    const int code = code_index % 2 == 0 ? pair % 16 : pair / 16;
    const int64_t steps = n_ * k_ / 2;
    return (code - 8) *
           Int8At(steps + tile * 32 + g * 4 + half_of_k * 2 + (upper ? 1 : 0));
  }

  float ScaleAt(int64_t output) const {
    float scale;
    std::memcpy(&scale, &bytes_[bytes_.size() - (n_ - output) * 4], 4);
    return scale;
  }

 private:
  int Int8At(int64_t at) const { return static_cast<int8_t>(bytes_[at]); }

  WeightFormat format_;
  std::vector<std::byte> bytes_;
  int64_t n_;
  int64_t k_;
};

TEST(FragmentLayoutTest, HoldsEveryWeightOnce) {
  const std::pair<int64_t, int64_t> shapes[] = {
      {64, 64}, {1, 1}, {17, 200}, {130, 65}, {80, 96}};
  for (const WeightFormat format : kTensorFormats) {
    for (const auto& [n, k] : shapes) {
      SCOPED_TRACE(testing::Message()
                   << WeightFormatName(format) << " " << n << " x " << k);
      const CudaTestMatrix matrix(n, k, format, 5);
      const Fragments fragments(matrix);
      for (int64_t output = 0; output < fragments.n(); ++output) {
        for (int64_t i = 0; i < fragments.k(); ++i) {
          double expected = 0;
          if (output < n && i < k) {
            expected = IsQuantized(format) ? CodeOf(matrix.packed, output, i)
                                           : matrix.At(output, i);
          }
          ASSERT_EQ(fragments.At(output, i), expected) << output << ", " << i;
        }
        if (!IsQuantized(format)) continue;
        ASSERT_EQ(fragments.ScaleAt(output),
                  output < n ? ScaleOf(matrix.packed, output) : 0.0f);
      }
    }
  }
}

// Whoever has the tensor need not pack it first.
TEST(FragmentLayoutTest, TensorsBecomeWhatTheirPanelsDo) {
  constexpr int64_t kN = 70, kK = 90;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const TypedValues tensor(RandomFloats(kN * kK, 3), dtype);
    const DeviceMemory from(tensor.bytes.data(), tensor.bytes.size());
    for (const WeightFormat format :
         {WeightFormat::kF32, WeightFormat::kBF16, FormatOf(dtype)}) {
      const auto packed = *PackedMatrix::Pack(tensor.View(kN, kK), format);
      const DeviceMemory panels(packed.panel(0), packed.size_bytes());
      const int64_t bytes = CudaMatrixBytes(kN, kK, format);
      const DeviceMemory of_tensor(bytes), of_panels(bytes);
      ASSERT_EQ(LaunchRepackTensor(from.data(), dtype, kN, kK, format,
                                   WeightOrder::kFragments, of_tensor.data(),
                                   nullptr),
                cudaSuccess);
      ASSERT_EQ(LaunchRepackPanels(panels.data(), kN, kK, format,
                                   WeightOrder::kFragments, of_panels.data(),
                                   nullptr),
                cudaSuccess);
      EXPECT_EQ(of_tensor.Read(), of_panels.Read())
          << DTypeName(dtype) << " to " << WeightFormatName(format);
    }
  }
}

TEST(FragmentLayoutTest, RefusesWhatNoFormatHolds) {
  const DeviceMemory memory(4096);
  const auto repack = [&](DType dtype, WeightFormat format) {
    return LaunchRepackTensor(memory.data(), dtype, 4, 4, format,
                              WeightOrder::kFragments, memory.data(), nullptr);
  };
  EXPECT_EQ(repack(DType::kF32, WeightFormat::kF16), cudaErrorInvalidValue);
  EXPECT_EQ(repack(DType::kF32, WeightFormat::kInt8), cudaErrorInvalidValue);
  EXPECT_EQ(repack(DType::kInt8, WeightFormat::kBF16), cudaErrorInvalidValue);
}

TEST(FragmentLayoutTest, RangesCoverEachTileOnce) {
  for (int tiles = 1; tiles < 200; ++tiles) {
    EXPECT_EQ(RangeBegin(tiles, 0), 0);
    EXPECT_EQ(RangeBegin(tiles, kSumRanges), tiles);
    for (int range = 0; range < kSumRanges; ++range) {
      const int size = RangeBegin(tiles, range + 1) - RangeBegin(tiles, range);
      EXPECT_GE(size, range < tiles ? 1 : 0) << tiles;
      EXPECT_LE(size, tiles / kSumRanges + 1) << tiles;
    }
  }
}

}  // namespace
}  // namespace expertmesh::expert
