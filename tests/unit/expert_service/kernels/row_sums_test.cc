#include "expert_service/kernels/row_sums.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "services/linalg/activation_row.h"

namespace expertmesh::expert {
namespace {

// More elements than one thread adds, and a tail beyond the last whole task.
TEST(RowSumsTest, ThreadsChangeNoBit) {
  constexpr int64_t kHidden = 3 * 256 + 19;
  constexpr int64_t kRows = 200;
  constexpr int64_t kSums = 7;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kInt8}) {
    const size_t row_bytes = RowBytes(dtype, kHidden);
    std::vector<float> values(kRows * kHidden);
    std::vector<std::byte> data(kRows * row_bytes);
    for (float& value : values) value = normal(random);
    for (int64_t row = 0; row < kRows; ++row) {
      float* const x = &values[row * kHidden];
      std::byte* const stored = &data[row * row_bytes];
      StoreRow(x, kHidden, dtype, stored);
      // As it travels.
      std::fill_n(x, kHidden, 0.0f);
      AddScaledRow(1.0f, stored, dtype, 0, kHidden, x);
    }
    std::vector<float> expected(kSums * kHidden), sums(kSums * kHidden);
    std::vector<SummedRow> rows;
    for (int64_t row = 0; row < kRows; ++row) {
      const int64_t sum = static_cast<int64_t>(random() % kSums) * kHidden;
      const float weight = normal(random);
      rows.push_back({&data[row * row_bytes], weight, sums.data() + sum});
      for (int64_t i = 0; i < kHidden; ++i) {
        const float product = weight * values[row * kHidden + i];
        expected[sum + i] += product;
      }
    }
    for (const int threads : {1, 3}) {
      WorkerPool pool(threads);
      std::fill(sums.begin(), sums.end(), 0.0f);
      AddRows(rows, dtype, kHidden, pool);
      EXPECT_EQ(std::memcmp(sums.data(), expected.data(), sums.size() * 4), 0);
      std::fill(sums.begin(), sums.end(), 0.0f);
      // Few rows at a time, as they come.
      for (const SummedRow& row : rows)
        AddRows({&row, 1}, dtype, kHidden, pool);
      EXPECT_EQ(std::memcmp(sums.data(), expected.data(), sums.size() * 4), 0);
    }
  }
}

}  // namespace
}  // namespace expertmesh::expert
