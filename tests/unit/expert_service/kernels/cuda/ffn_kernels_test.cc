#include "expert_service/kernels/cuda/ffn_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "expert_service/kernels/cuda/ffn_stages.h"
#include "services/linalg/activation_row.h"
#include "tests/unit/expert_service/kernels/cuda/cuda_expert.h"

namespace expertmesh::expert {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kF32, WeightFormat::kBF16,
                                     WeightFormat::kF16, WeightFormat::kInt8,
                                     WeightFormat::kInt4};
constexpr DType kRowTypes[] = {DType::kF32, DType::kBF16, DType::kInt8};

bool IsForTensorCores(WeightFormat format) {
  return format != WeightFormat::kF32 && format != WeightFormat::kF16;
}

// One sum, and how far it may be off: by a rounding of sums in f32, and by a
// few of its terms that were rounded to the other neighbour in bf16.
struct Expected {
  double value;
  double tolerance;
};

Expected ExactProduct(const CudaTestMatrix& w, int64_t output,
                      const std::vector<double>& x) {
  double sum = 0, magnitude = 0, largest = 0;
  for (int64_t k = 0; k < w.k; ++k) {
    const double term = w.At(output, k) * x[k];
    sum += term;
    magnitude += std::abs(term);
    largest = std::max(largest, std::abs(term));
  }
  return {sum, 1e-6 * magnitude + 0.01 * largest};
}

// Experts, and rows to send through them.
class Problem {
 public:
  Problem(const FfnShape& shape, int num_experts, int64_t num_rows, DType type)
      : shape_(shape), type_(type) {
    experts_.reserve(num_experts);
    for (int e = 0; e < num_experts; ++e) {
      experts_.emplace_back(shape, 10 * e + 1);
    }
    const std::vector<float> x =
        RandomFloats(num_rows * shape.hidden_size, 77, 2.0f);
    x_.resize(num_rows * RowBytes());
    for (int64_t row = 0; row < num_rows; ++row) {
      StoreRow(&x[row * shape.hidden_size], shape.hidden_size, type,
               &x_[row * RowBytes()]);
    }
  }

  int64_t RowBytes() const {
    return expertmesh::RowBytes(type_, shape_.hidden_size);
  }

  // counts[e] rows, from first_row on, through experts from first_expert on.
  std::vector<std::byte> Run(const std::vector<uint32_t>& counts,
                             int64_t first_row = 0,
                             int first_expert = 0) const {
    std::vector<const CudaExpertView*> experts;
    std::vector<uint32_t> offsets = {0};
    for (size_t e = 0; e < counts.size(); ++e) {
      experts.push_back(&experts_[first_expert + e].view);
      offsets.push_back(offsets.back() + counts[e]);
    }
    const int64_t num_rows = offsets.back();
    const auto num_groups = static_cast<int64_t>(counts.size());
    std::vector<std::byte> tables(MaxFfnTableBytes(num_rows, num_groups));
    FfnBatch batch;
    batch.shape = shape_;
    batch.dtype = type_;
    batch.num_rows = num_rows;
    batch.tables = WriteFfnTables({experts.data(), offsets.data(), num_groups},
                                  {num_rows, num_groups}, TileRowsOf(shape_),
                                  tables.data());
    EXPECT_LE(batch.tables.size_bytes, static_cast<int64_t>(tables.size()));
    const DeviceMemory table_memory(tables.data(), batch.tables.size_bytes);
    const DeviceMemory x(x_.data() + first_row * RowBytes(),
                         num_rows * RowBytes());
    const DeviceMemory y(num_rows * RowBytes());
    const DeviceMemory workspace(FfnWorkspaceBytes(shape_, num_rows));
    batch.table_memory = table_memory.data();
    batch.x = x.data();
    batch.y = y.data();
    batch.workspace = workspace.data();
    EXPECT_EQ(LaunchGroupedFfn(batch, nullptr), cudaSuccess);
    return y.Read();
  }

  // Compares what Run gave for rows from 0 and experts from 0 on.
  void ExpectNear(const std::vector<uint32_t>& counts,
                  const std::vector<std::byte>& y) const {
    int64_t row = 0;
    for (size_t e = 0; e < counts.size(); ++e) {
      for (uint32_t i = 0; i < counts[e]; ++i, ++row) {
        SCOPED_TRACE(testing::Message() << "row " << row << ", expert " << e);
        ExpectRowNear(experts_[e], row, &y[row * RowBytes()]);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }

 private:
  bool IsBf16() const { return IsForTensorCores(shape_.format); }

  // A row as it enters the products.
  std::vector<double> RowOf(int64_t row) const {
    std::vector<float> x(shape_.hidden_size);
    AddScaledRow(1.0f, &x_[row * RowBytes()], type_, 0, shape_.hidden_size,
                 x.data());
    std::vector<double> rounded(x.begin(), x.end());
    if (IsBf16() && type_ == DType::kF32) {
      for (double& v : rounded) v = ToF32(ToBF16(static_cast<float>(v)));
    }
    return rounded;
  }

  void ExpectRowNear(const CudaTestExpert& expert, int64_t row,
                     const std::byte* y) const {
    const std::vector<double> x = RowOf(row);
    std::vector<double> h(shape_.intermediate_size);
    for (int64_t i = 0; i < shape_.intermediate_size; ++i) {
      const double gate = ExactProduct(expert.gate, i, x).value;
      h[i] = gate / (1 + std::exp(-gate)) * ExactProduct(expert.up, i, x).value;
      if (IsBf16() || type_ == DType::kBF16) {
        h[i] = ToF32(ToBF16(static_cast<float>(h[i])));
      }
    }
    std::vector<float> outputs(shape_.hidden_size);
    AddScaledRow(1.0f, y, type_, 0, shape_.hidden_size, outputs.data());
    for (int64_t i = 0; i < shape_.hidden_size; ++i) {
      Expected expected = ExactProduct(expert.down, i, h);
      if (type_ == DType::kBF16) {
        expected.tolerance += std::abs(expected.value) / 256;
      } else if (type_ == DType::kInt8) {
        expected.tolerance += 0.51 * std::abs(ReadCodedRow(y).scale);
      }
      ASSERT_NEAR(outputs[i], expected.value, expected.tolerance)
          << "output " << i;
    }
  }

  FfnShape shape_;
  DType type_;
  std::vector<CudaTestExpert> experts_;
  std::vector<std::byte> x_;
};

// Runs a test for each format of weights.
class FfnKernelsTest : public testing::TestWithParam<WeightFormat> {
 protected:
  FfnShape Shape(int64_t hidden, int64_t intermediate) const {
    return {hidden, intermediate, GetParam()};
  }
};

TEST_P(FfnKernelsTest, MatchesExactSums) {
  struct Case {
    int64_t hidden;
    int64_t intermediate;
    std::vector<uint32_t> counts;
  };
  const Case cases[] = {
      {64, 128, {1}},        {40, 24, {0, 5, 0, 3, 0}}, {70, 36, {53, 0, 0, 0}},
      {192, 64, {1, 2, 30}}, {65, 1, {2, 2}},           {1, 17, {3}},
      {130, 72, {9, 1, 70}}, {16, 16, {0, 0}},          {16, 16, {}},
      {640, 72, {32, 33}},
  };
  for (const DType type : kRowTypes) {
    for (const Case& c : cases) {
      SCOPED_TRACE(testing::Message() << DTypeName(type) << ", " << c.hidden
                                      << " x " << c.intermediate);
      const auto experts = static_cast<int>(c.counts.size());
      const Problem problem(Shape(c.hidden, c.intermediate), experts, 100,
                            type);
      problem.ExpectNear(c.counts, problem.Run(c.counts));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(FfnKernelsTest, ManyExpertsWithAFewRowsEach) {
  const Problem problem(Shape(24, 16), 256, 260, DType::kBF16);
  std::vector<uint32_t> counts(256);
  for (int e = 0; e < 256; ++e) counts[e] = e % 3;
  problem.ExpectNear(counts, problem.Run(counts));
}

// Neither the company that a row has nor the kernel that this leads to.
TEST_P(FfnKernelsTest, NoBitDependsOnOtherRows) {
  constexpr uint32_t kRows = 100;
  // More tiles of k than ranges, of uneven sizes, and a part of a tile. The
  // plain kernel has neither, and takes long.
  const FfnShape shape =
      IsForTensorCores(GetParam()) ? Shape(11 * 64 + 5, 130) : Shape(70, 33);
  for (const DType type : kRowTypes) {
    const Problem problem(shape, 2, 2 * kRows, type);
    const std::vector<std::byte> together = problem.Run({kRows, kRows});
    const auto expect_same = [&](uint32_t first, uint32_t count) {
      const std::vector<std::byte> apart = problem.Run({count}, first, 0);
      EXPECT_TRUE(std::equal(apart.begin(), apart.end(),
                             together.begin() + first * problem.RowBytes()))
          << DTypeName(type) << " rows " << first << " to " << first + count;
    };
    for (const uint32_t row : {0, 7, 63, 64, 99}) expect_same(row, 1);
    expect_same(60, 7);
    expect_same(2, 12);
    expect_same(50, 32);
    expect_same(67, 33);
    const std::vector<std::byte> second = problem.Run({7}, kRows + 90, 1);
    EXPECT_TRUE(
        std::equal(second.begin(), second.end(),
                   together.begin() + (kRows + 90) * problem.RowBytes()));
  }
}

std::string FormatTestName(const testing::TestParamInfo<WeightFormat>& info) {
  return std::string(WeightFormatName(info.param));
}
INSTANTIATE_TEST_SUITE_P(EachFormat, FfnKernelsTest,
                         testing::ValuesIn(kFormats), FormatTestName);

TEST(FfnTablesTest, EveryRowIsInOneTile) {
  const CudaExpertView view;
  const std::vector<uint32_t> offsets = {0, 0, 32, 65, 66, 300};
  const std::vector<const CudaExpertView*> experts(5, &view);
  std::vector<std::byte> memory(MaxFfnTableBytes(300, 5));
  const FfnTables tables =
      WriteFfnTables({experts.data(), offsets.data(), 5}, {300, 5},
                     {kSmallRows, kLargeRows}, memory.data());
  EXPECT_EQ(tables.num_small, 3);  // with an empty one
  EXPECT_EQ(tables.num_large, 1 + 4);
  EXPECT_LE(tables.size_bytes, static_cast<int64_t>(memory.size()));
  std::vector<int> group_of(300, -1);
  const auto* const tiles = reinterpret_cast<const RowTile*>(
      memory.data() + 5 * sizeof(CudaExpertView));
  for (int i = 0; i < tables.num_small + tables.num_large; ++i) {
    EXPECT_LE(tiles[i].num_rows,
              i < tables.num_small ? kSmallRows : kLargeRows);
    for (int32_t row = 0; row < tiles[i].num_rows; ++row) {
      EXPECT_EQ(group_of[tiles[i].first_row + row], -1);
      group_of[tiles[i].first_row + row] = tiles[i].group;
    }
  }
  for (uint32_t row = 0; row < 300; ++row) {
    const auto end = std::upper_bound(offsets.begin(), offsets.end(), row);
    EXPECT_EQ(group_of[row], end - offsets.begin() - 1) << row;
  }
}

TEST(FfnRowsTest, QuantizesAsTheHostDoes) {
  for (const int64_t n : {1, 63, 300}) {
    std::vector<float> rows = RandomFloats(6 * n, 9, 3.0f);
    std::fill_n(&rows[1 * n], n, 0.0f);
    std::fill_n(&rows[2 * n], n, 1e-31f);
    rows[3 * n] = std::nanf("");
    rows[4 * n + n / 2] = -INFINITY;
    const int64_t row_bytes = RowBytes(DType::kInt8, n);
    std::vector<std::byte> expected(6 * row_bytes);
    for (int row = 0; row < 6; ++row) {
      StoreRow(&rows[row * n], n, DType::kInt8, &expected[row * row_bytes]);
    }
    const DeviceMemory x(rows.data(), rows.size() * sizeof(float));
    const DeviceMemory y(expected.size());
    ASSERT_EQ(LaunchQuantizeRows(static_cast<const float*>(x.data()), 6, n,
                                 y.data(), nullptr),
              cudaSuccess);
    EXPECT_EQ(y.Read(), expected) << n;
  }
}

}  // namespace
}  // namespace expertmesh::expert
