#include "services/linalg/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Keys and values of one sequence, also as pages whose unused places hold NaN.
class Cache {
 public:
  Cache(int64_t num_keys, int64_t head_dim, DType dtype, uint32_t seed = 1)
      : keys(RandomFloats(num_keys * head_dim, seed), dtype),
        values(RandomFloats(num_keys * head_dim, seed + 1), dtype),
        num_keys_(num_keys),
        head_dim_(head_dim) {
    const int64_t num_pages = (num_keys + kPageTokens - 1) / kPageTokens;
    std::vector<float> key_floats(num_pages * PageElements(), kNan);
    std::vector<float> value_floats = key_floats;
    for (int64_t j = 0; j < num_keys; ++j) {
      const int64_t page = j / kPageTokens * PageElements();
      const int64_t slot = j % kPageTokens;
      for (int64_t d = 0; d < head_dim; ++d) {
        const int64_t from = j * head_dim + d;
        key_floats[page + d * kPageTokens + slot] = keys.f32[from];
        value_floats[page + slot * head_dim + d] = values.f32[from];
      }
    }
    key_pages_ = std::make_unique<TypedValues>(key_floats, dtype);
    value_pages_ = std::make_unique<TypedValues>(value_floats, dtype);
    const int64_t page_bytes =
        PageElements() * static_cast<int64_t>(DTypeBytes(dtype));
    for (int64_t p = 0; p < num_pages; ++p) {
      key_table.push_back(key_pages_->bytes.data() + p * page_bytes);
      value_table.push_back(value_pages_->bytes.data() + p * page_bytes);
    }
  }

  PagedKv Pages() const {
    return {keys.dtype, key_table.data(), value_table.data()};
  }

  // Plain softmax in double precision.
  std::vector<double> Expected(const float* query, int64_t position,
                               int64_t window) const {
    const int64_t first =
        window > 0 ? std::max<int64_t>(position + 1 - window, 0) : 0;
    std::vector<double> out(head_dim_);
    double sum = 0;
    for (int64_t j = first; j <= position; ++j) {
      double score = 0;
      for (int64_t d = 0; d < head_dim_; ++d) {
        score += static_cast<double>(query[d]) * keys.f32[j * head_dim_ + d];
      }
      const double weight = std::exp(score);
      sum += weight;
      for (int64_t d = 0; d < head_dim_; ++d) {
        out[d] += weight * values.f32[j * head_dim_ + d];
      }
    }
    for (double& v : out) v /= sum;
    return out;
  }

  TypedValues keys, values;
  std::vector<const std::byte*> key_table, value_table;

 private:
  int64_t PageElements() const { return kPageTokens * head_dim_; }

  int64_t num_keys_, head_dim_;
  std::unique_ptr<TypedValues> key_pages_, value_pages_;
};

// `heads` rows per position, as prefill of a chunk makes them.
std::vector<int64_t> ChunkPositions(int64_t first, int64_t last,
                                    int64_t heads) {
  std::vector<int64_t> positions;
  for (int64_t p = first; p < last; ++p) {
    for (int64_t h = 0; h < heads; ++h) positions.push_back(p);
  }
  return positions;
}

std::vector<float> AttendOver(const Cache& cache,
                              const std::vector<float>& queries,
                              const std::vector<int64_t>& positions,
                              int64_t head_dim, int64_t window) {
  std::vector<float> out(queries.size(), kNan);
  AttendRows(queries.data(), positions.data(), positions.size(), head_dim,
             window, cache.Pages(), out.data());
  return out;
}

class AttentionTest : public ::testing::TestWithParam<Isa> {
 protected:
  const ScopedIsa isa_{GetParam()};
};

TEST_P(AttentionTest, MatchesPlainSoftmax) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t head_dim : {1, 16, 24, 64, 80, 128, 256}) {
      for (const int64_t window : {0, 1, 20, 64, 100}) {
        const Cache cache(150, head_dim, dtype);
        std::vector<int64_t> positions = {0, 15, 16, 63, 64, 65, 127, 128, 149};
        for (const int64_t p : ChunkPositions(60, 68, 2)) {
          positions.push_back(p);
        }
        const std::vector<float> queries =
            RandomFloats(positions.size() * head_dim, 5);
        const std::vector<float> out =
            AttendOver(cache, queries, positions, head_dim, window);
        for (size_t r = 0; r < positions.size(); ++r) {
          const std::vector<double> expected =
              cache.Expected(&queries[r * head_dim], positions[r], window);
          for (int64_t d = 0; d < head_dim; ++d) {
            ASSERT_NEAR(out[r * head_dim + d], expected[d], 1e-5)
                << DTypeName(dtype) << " head_dim " << head_dim << " window "
                << window << " position " << positions[r] << " d " << d;
          }
        }
      }
    }
  }
}

TEST_P(AttentionTest, ARowHasTheSameBitsInEveryCompany) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t head_dim : {24, 64}) {
      for (const int64_t window : {0, 50}) {
        const Cache cache(200, head_dim, dtype);
        // Positions scattered, so that tiles mix all sorts of ranges.
        std::vector<int64_t> positions;
        for (int64_t i = 0; i < 41; ++i) positions.push_back(i * 37 % 200);
        const std::vector<float> queries =
            RandomFloats(positions.size() * head_dim, 6);
        const std::vector<float> together =
            AttendOver(cache, queries, positions, head_dim, window);
        for (size_t r = 0; r < positions.size(); ++r) {
          const auto begin = queries.begin() + r * head_dim;
          const std::vector<float> alone =
              AttendOver(cache, {begin, begin + head_dim}, {positions[r]},
                         head_dim, window);
          const auto out = together.begin() + r * head_dim;
          ASSERT_EQ(BitsOf({out, out + head_dim}), BitsOf(alone))
              << "position " << positions[r] << " window " << window;
        }
      }
    }
  }
}

TEST_P(AttentionTest, EqualsThePortableBits) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t head_dim : {24, 128}) {
      const Cache cache(130, head_dim, dtype);
      const std::vector<int64_t> positions = ChunkPositions(100, 130, 4);
      const std::vector<float> queries =
          RandomFloats(positions.size() * head_dim, 7);
      const auto here = AttendOver(cache, queries, positions, head_dim, 70);
      const ScopedIsa portable(Isa::kPortable);
      const auto there = AttendOver(cache, queries, positions, head_dim, 70);
      EXPECT_EQ(BitsOf(here), BitsOf(there));
    }
  }
}

TEST_P(AttentionTest, LaterKeysChangeNoBit) {
  const int64_t head_dim = 32;
  const Cache longer(100, head_dim, DType::kF32);
  Cache shorter(100, head_dim, DType::kF32);
  // Only the pages that hold positions 0 to 40 remain.
  for (size_t p = 3; p < shorter.key_table.size(); ++p) {
    shorter.key_table[p] = shorter.value_table[p] = nullptr;
  }
  const std::vector<float> queries = RandomFloats(head_dim, 8);
  EXPECT_EQ(BitsOf(AttendOver(longer, queries, {40}, head_dim, 0)),
            BitsOf(AttendOver(shorter, queries, {40}, head_dim, 0)));
}

TEST_P(AttentionTest, PagesBeforeTheWindowMayBeGone) {
  const int64_t head_dim = 32;
  const Cache whole(200, head_dim, DType::kBF16);
  Cache rest(200, head_dim, DType::kBF16);
  // Position 150 with a window of 40 begins at 111, in page 6.
  for (size_t p = 0; p < 6; ++p) {
    rest.key_table[p] = rest.value_table[p] = nullptr;
  }
  const std::vector<float> queries = RandomFloats(2 * head_dim, 9);
  EXPECT_EQ(BitsOf(AttendOver(whole, queries, {150, 151}, head_dim, 40)),
            BitsOf(AttendOver(rest, queries, {150, 151}, head_dim, 40)));
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  const int64_t head_dim = 16;
  const Cache cache(100, head_dim, DType::kF32);
  const std::vector<float> queries = RandomFloats(head_dim, 10, 1000.0f);
  for (const float v : AttendOver(cache, queries, {99}, head_dim, 0)) {
    EXPECT_TRUE(std::isfinite(v));
  }
}

TEST_P(AttentionTest, NoRows) {
  AttendRows(nullptr, nullptr, 0, 64, 0, PagedKv(), nullptr);
}

INSTANTIATE_TEST_SUITE_P(EachIsa, AttentionTest,
                         ::testing::ValuesIn(AvailableIsas()), IsaTestName);

}  // namespace
}  // namespace expertmesh
