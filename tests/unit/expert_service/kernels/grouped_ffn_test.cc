#include "expert_service/kernels/grouped_ffn.h"

#include <gtest/gtest.h>

#include <cmath>

#include "expert_service/kernels/grouped_ffn_reference.h"
#include "services/linalg/activation_row.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh::expert {
namespace {

struct Shape {
  int64_t hidden;
  int64_t intermediate;
};

constexpr WeightFormat kFormats[] = {WeightFormat::kF32, WeightFormat::kBF16,
                                     WeightFormat::kF16, WeightFormat::kInt8,
                                     WeightFormat::kInt4};

// Of tensors that are packed in a format.
DType StoredType(WeightFormat format) {
  if (format == WeightFormat::kBF16) return DType::kBF16;
  return format == WeightFormat::kF16 ? DType::kF16 : DType::kF32;
}

// Experts, and rows to send through them.
class Problem {
 public:
  Problem(Shape shape, int num_experts, int64_t max_rows, WeightFormat format,
          DType type)
      : shape_(shape), format_(format), type_(type), max_rows_(max_rows) {
    const auto pack = [&](int64_t n, int64_t k, uint32_t seed) {
      const float scale = 2.0f / std::sqrt(static_cast<float>(k));
      const TypedValues values(RandomFloats(n * k, seed, scale),
                               StoredType(format));
      return *PackedMatrix::Pack(values.View(n, k), format);
    };
    for (int e = 0; e < num_experts; ++e) {
      experts_.push_back({pack(shape.intermediate, shape.hidden, 3 * e + 1),
                          pack(shape.intermediate, shape.hidden, 3 * e + 2),
                          pack(shape.hidden, shape.intermediate, 3 * e + 3)});
    }
    const std::vector<float> x = RandomFloats(max_rows * shape.hidden, 77);
    x_ = Buffer(max_rows * RowBytes());
    for (int64_t row = 0; row < max_rows; ++row) {
      StoreRow(&x[row * shape.hidden], shape.hidden, type,
               x_.data() + row * RowBytes());
    }
  }

  GroupedFfnOptions Options() const {
    return {shape_.hidden, shape_.intermediate, max_rows_, Activation::kSiluGlu,
            IsQuantized(format_)};
  }
  int64_t RowBytes() const {
    return expertmesh::RowBytes(type_, shape_.hidden);
  }
  DType type() const { return type_; }
  WeightFormat format() const { return format_; }

  // Rows per expert, expert e being experts_[e]; y as bytes.
  std::vector<std::byte> Run(GroupedFfn& ffn,
                             const std::vector<uint32_t>& counts,
                             int64_t first_row = 0, int first_expert = 0) {
    std::vector<const LoadedExpert*> experts;
    std::vector<uint32_t> offsets = {0};
    for (size_t e = 0; e < counts.size(); ++e) {
      experts.push_back(&experts_[first_expert + e]);
      offsets.push_back(offsets.back() + counts[e]);
    }
    const size_t used = offsets.back() * RowBytes();
    // x is 64-byte aligned, whichever row comes first.
    Buffer x(used);
    std::memcpy(x.data(), x_.data() + first_row * RowBytes(), used);
    std::vector<std::byte> y(used + 64, std::byte{0xab});
    EXPECT_TRUE(ffn.Run({experts, offsets, type_, x.data(), y.data()}).ok());
    for (size_t i = used; i < y.size(); ++i) {
      EXPECT_EQ(y[i], std::byte{0xab}) << "written past the last row";
    }
    y.resize(used);
    return y;
  }

  void ExpectNear(const std::vector<std::byte>& y,
                  const std::vector<std::byte>& expected) const {
    ASSERT_EQ(y.size(), expected.size());
    const std::vector<float> rows = AsF32(y);
    const std::vector<float> expected_rows = AsF32(expected);
    // Two roundings to bf16, or to codes, may each fall to the other side.
    const float tolerance =
        type_ == DType::kF32 && !IsQuantized(format_) ? 2e-6f : 2e-2f;
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_NEAR(rows[i], expected_rows[i], tolerance) << "element " << i;
    }
  }

  std::vector<float> AsF32(const std::vector<std::byte>& y) const {
    const int64_t num_rows = y.size() / RowBytes();
    std::vector<float> rows(num_rows * shape_.hidden);
    for (int64_t row = 0; row < num_rows; ++row) {
      AddScaledRow(1.0f, &y[row * RowBytes()], type_, 0, shape_.hidden,
                   &rows[row * shape_.hidden]);
    }
    return rows;
  }

 private:
  Shape shape_;
  WeightFormat format_;
  DType type_;
  int64_t max_rows_;
  std::vector<PackedExpert> experts_;
  Buffer x_;
};

class GroupedFfnTest : public ::testing::TestWithParam<Isa> {
 protected:
  const ScopedIsa isa_{GetParam()};
  WorkerPool pool_{3};
};

TEST_P(GroupedFfnTest, MatchesTheReference) {
  struct Case {
    Shape shape;
    std::vector<uint32_t> counts;
  };
  const Case cases[] = {
      {{24, 36}, {1}},           {{40, 24}, {0, 5, 0, 3, 0}},
      {{40, 36}, {53, 0, 0, 0}}, {{64, 128}, {1, 2, 30}},
      {{65, 1}, {2, 2}},         {{130, 70}, {7, 1}},
      {{16, 16}, {0, 0}},        {{16, 16}, {}},
  };
  for (const WeightFormat weight : kFormats) {
    for (const DType type : {DType::kF32, DType::kBF16, DType::kInt8}) {
      for (const Case& c : cases) {
        SCOPED_TRACE(testing::Message()
                     << DTypeName(type) << " x " << WeightFormatName(weight)
                     << ", " << c.shape.hidden << " x "
                     << c.shape.intermediate);
        Problem problem(c.shape, c.counts.size(), 60, weight, type);
        const auto ffn = MakeGroupedFfnCpu(problem.Options(), &pool_);
        const auto reference = MakeGroupedFfnReference(problem.Options());
        problem.ExpectNear(problem.Run(*ffn, c.counts),
                           problem.Run(*reference, c.counts));
      }
    }
  }
}

TEST_P(GroupedFfnTest, ManyExpertsWithAFewRowsEach) {
  Problem problem({32, 48}, 256, 300, WeightFormat::kBF16, DType::kBF16);
  std::vector<uint32_t> counts(256);
  for (int e = 0; e < 256; ++e) counts[e] = e % 3;
  const auto ffn = MakeGroupedFfnCpu(problem.Options(), &pool_);
  const auto reference = MakeGroupedFfnReference(problem.Options());
  problem.ExpectNear(problem.Run(*ffn, counts),
                     problem.Run(*reference, counts));
}

TEST_P(GroupedFfnTest, NeitherCompanyNorThreadsChangeABit) {
  std::vector<Problem> problems;
  for (const WeightFormat format : kFormats) {
    const DType type =
        format == WeightFormat::kF32 ? DType::kF32 : DType::kBF16;
    problems.emplace_back(Shape{70, 100}, 3, 300, format, type);
    problems.emplace_back(Shape{70, 100}, 3, 300, format, DType::kInt8);
  }
  for (Problem& problem : problems) {
    const std::vector<uint32_t> counts = {1, 250, 13};
    const auto ffn = MakeGroupedFfnCpu(problem.Options(), &pool_);
    const std::vector<std::byte> together = problem.Run(*ffn, counts);
    for (const int threads : {1, 2, 8}) {
      WorkerPool pool(threads);
      const auto other = MakeGroupedFfnCpu(problem.Options(), &pool);
      EXPECT_EQ(problem.Run(*other, counts), together) << threads << " threads";
    }
    int64_t row = 0;
    for (int e = 0; e < 3; ++e) {
      for (uint32_t i = 0; i < counts[e]; ++i, ++row) {
        const std::vector<std::byte> alone = problem.Run(*ffn, {1}, row, e);
        const auto begin = together.begin() + row * problem.RowBytes();
        ASSERT_TRUE(std::equal(alone.begin(), alone.end(), begin))
            << DTypeName(problem.type()) << " x "
            << WeightFormatName(problem.format()) << " row " << row;
      }
    }
  }
}

// What travels in codes is what they would have made of it: on the way to
// quantized experts nothing is lost, only on the way back.
TEST_P(GroupedFfnTest, QuantizedExpertsTakeCodesAsTheyCome) {
  constexpr int64_t kHidden = 70;
  const std::vector<uint32_t> counts = {1, 40, 13};
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    Problem floats({kHidden, 100}, 3, 60, format, DType::kF32);
    Problem codes({kHidden, 100}, 3, 60, format, DType::kInt8);
    const auto ffn = MakeGroupedFfnCpu(floats.Options(), &pool_);
    const std::vector<float> y = floats.AsF32(floats.Run(*ffn, counts));
    const std::vector<std::byte> coded = codes.Run(*ffn, counts);
    std::vector<std::byte> expected(coded.size());
    for (size_t row = 0; row * kHidden < y.size(); ++row) {
      StoreRow(&y[row * kHidden], kHidden, DType::kInt8,
               &expected[row * codes.RowBytes()]);
    }
    EXPECT_EQ(coded, expected) << WeightFormatName(format);
  }
}

INSTANTIATE_TEST_SUITE_P(EachIsa, GroupedFfnTest,
                         ::testing::ValuesIn(AvailableIsas()), IsaTestName);

}  // namespace
}  // namespace expertmesh::expert
