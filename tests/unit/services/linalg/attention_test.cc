#include "services/linalg/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16,
                                 KvFormat::kInt8};

// Keys or values of one position as a format holds them.
struct StoredVector {
  StoredVector(const float* x, int64_t n, KvFormat format)
      : codes(n), f32(x, x + n) {
    if (format == KvFormat::kBF16) {
      for (float& v : f32) v = ToF32(ToBF16(v));
    }
    if (format != KvFormat::kInt8) return;
    float max = 0;
    for (const float v : f32) max = std::max(max, std::abs(v));
    scale = max / 127.0f;
    for (int64_t i = 0; i < n; ++i) {
      codes[i] = static_cast<int8_t>(std::nearbyint(f32[i] / scale));
      f32[i] = static_cast<float>(codes[i]) * scale;
    }
  }

  float scale = 0;  // of int8
  std::vector<int8_t> codes;
  std::vector<float> f32;  // what is stored stands for
};

// Pages of one KV head's keys or values, NaN in unused places.
class Pages {
 public:
  // `step`: elements from one to the next of a position; `slot_step`: from a
  // position to the next.
  Pages(int64_t num_keys, int64_t head_dim, KvFormat format, int64_t step,
        int64_t slot_step)
      : format_(format),
        step_(step),
        slot_step_(slot_step),
        page_bytes_(KvPageBytes(head_dim, format)),
        // Of all ones: NaN as f32 and as bf16.
        bytes_((num_keys + kPageTokens - 1) / kPageTokens * page_bytes_,
               std::byte{0xff}) {
    for (size_t at = 0; at < bytes_.size(); at += page_bytes_) {
      table.push_back(bytes_.data() + at);
    }
  }

  void Set(int64_t position, const StoredVector& x) {
    std::byte* page = bytes_.data() + position / kPageTokens * page_bytes_;
    const int64_t slot = position % kPageTokens;
    std::byte* elements = page;
    if (format_ == KvFormat::kInt8) {
      std::memcpy(page + slot * 4, &x.scale, 4);
      elements += kPageTokens * 4;
    }
    for (size_t d = 0; d < x.f32.size(); ++d) {
      const int64_t at = slot * slot_step_ + static_cast<int64_t>(d) * step_;
      switch (format_) {
        case KvFormat::kF32:
          std::memcpy(elements + at * 4, &x.f32[d], 4);
          break;
        case KvFormat::kBF16:
          std::memcpy(elements + at * 2,
                      reinterpret_cast<const std::byte*>(&x.f32[d]) + 2, 2);
          break;
        case KvFormat::kInt8:
          std::memcpy(elements + at, &x.codes[d], 1);
          break;
      }
    }
  }

  std::vector<const std::byte*> table;

 private:
  KvFormat format_;
  int64_t step_, slot_step_, page_bytes_;
  std::vector<std::byte> bytes_;
};

// Keys and values of one sequence, also as pages.
class Cache {
 public:
  Cache(int64_t num_keys, int64_t head_dim, KvFormat format, uint32_t seed = 1)
      : key_pages(num_keys, head_dim, format, kPageTokens, 1),
        value_pages(num_keys, head_dim, format, 1, head_dim),
        format_(format),
        head_dim_(head_dim) {
    const auto keys = RandomFloats(num_keys * head_dim, seed);
    const auto values = RandomFloats(num_keys * head_dim, seed + 1);
    for (int64_t j = 0; j < num_keys; ++j) {
      keys_.emplace_back(&keys[j * head_dim], head_dim, format);
      values_.emplace_back(&values[j * head_dim], head_dim, format);
      key_pages.Set(j, keys_.back());
      value_pages.Set(j, values_.back());
    }
  }

  PagedKv Paged() const {
    return {format_, key_pages.table.data(), value_pages.table.data()};
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
        score += static_cast<double>(query[d]) * keys_[j].f32[d];
      }
      const double weight = std::exp(score);
      sum += weight;
      for (int64_t d = 0; d < head_dim_; ++d) {
        out[d] += weight * values_[j].f32[d];
      }
    }
    for (double& v : out) v /= sum;
    return out;
  }

  Pages key_pages, value_pages;

 private:
  KvFormat format_;
  int64_t head_dim_;
  std::vector<StoredVector> keys_, values_;
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
             window, cache.Paged(), out.data());
  return out;
}

class AttentionTest : public ::testing::TestWithParam<Isa> {
 protected:
  const ScopedIsa isa_{GetParam()};
};

TEST_P(AttentionTest, MatchesPlainSoftmax) {
  for (const KvFormat format : kFormats) {
    for (const int64_t head_dim : {1, 16, 24, 64, 80, 128, 256}) {
      for (const int64_t window : {0, 1, 20, 64, 100}) {
        const Cache cache(150, head_dim, format);
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
                << KvFormatName(format) << " head_dim " << head_dim
                << " window " << window << " position " << positions[r] << " d "
                << d;
          }
        }
      }
    }
  }
}

TEST_P(AttentionTest, ARowHasTheSameBitsInEveryCompany) {
  for (const KvFormat format : kFormats) {
    for (const int64_t head_dim : {24, 64}) {
      for (const int64_t window : {0, 50}) {
        const Cache cache(200, head_dim, format);
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

// Groups of one to eight heads, in chunks that end anywhere in a page.
TEST_P(AttentionTest, ChunksChangeNoBit) {
  const int64_t head_dim = 40;
  for (const KvFormat format : kFormats) {
    const Cache cache(90, head_dim, format);
    for (int64_t group = 1; group <= 8; ++group) {
      const std::vector<int64_t> positions = ChunkPositions(0, 90, group);
      const std::vector<float> queries =
          RandomFloats(positions.size() * head_dim, 11);
      const auto whole = AttendOver(cache, queries, positions, head_dim, 30);
      std::vector<float> in_chunks;
      for (int64_t first = 0, chunk = 1; first < 90; first += chunk++) {
        const int64_t last = std::min<int64_t>(first + chunk, 90);
        const std::vector<float> part(
            queries.begin() + first * group * head_dim,
            queries.begin() + last * group * head_dim);
        const auto out = AttendOver(
            cache, part, ChunkPositions(first, last, group), head_dim, 30);
        in_chunks.insert(in_chunks.end(), out.begin(), out.end());
      }
      ASSERT_EQ(BitsOf(in_chunks), BitsOf(whole))
          << KvFormatName(format) << ", group of " << group;
    }
  }
}

TEST_P(AttentionTest, EqualsThePortableBits) {
  for (const KvFormat format : kFormats) {
    for (const int64_t head_dim : {24, 128}) {
      const Cache cache(130, head_dim, format);
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
  const Cache longer(100, head_dim, KvFormat::kF32);
  Cache shorter(100, head_dim, KvFormat::kF32);
  // Only the pages that hold positions 0 to 40 remain.
  for (size_t p = 3; p < shorter.key_pages.table.size(); ++p) {
    shorter.key_pages.table[p] = shorter.value_pages.table[p] = nullptr;
  }
  const std::vector<float> queries = RandomFloats(head_dim, 8);
  EXPECT_EQ(BitsOf(AttendOver(longer, queries, {40}, head_dim, 0)),
            BitsOf(AttendOver(shorter, queries, {40}, head_dim, 0)));
}

TEST_P(AttentionTest, PagesBeforeTheWindowMayBeGone) {
  const int64_t head_dim = 32;
  const Cache whole(200, head_dim, KvFormat::kBF16);
  Cache rest(200, head_dim, KvFormat::kBF16);
  // Position 150 with a window of 40 begins at 111, in page 6.
  for (size_t p = 0; p < 6; ++p) {
    rest.key_pages.table[p] = rest.value_pages.table[p] = nullptr;
  }
  const std::vector<float> queries = RandomFloats(2 * head_dim, 9);
  EXPECT_EQ(BitsOf(AttendOver(whole, queries, {150, 151}, head_dim, 40)),
            BitsOf(AttendOver(rest, queries, {150, 151}, head_dim, 40)));
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  const int64_t head_dim = 16;
  const Cache cache(100, head_dim, KvFormat::kF32);
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
