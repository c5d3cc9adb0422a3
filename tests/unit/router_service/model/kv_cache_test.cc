#include "router_service/model/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace expertmesh::router {
namespace {

constexpr int64_t kHeadDim = 24;
constexpr int64_t kKvHeads = 3;
constexpr int64_t kLayers = 2;
constexpr int64_t kNumPages = 4;

ModelConfig Config() {
  ModelConfig config;
  config.num_layers = kLayers;
  config.num_kv_heads = kKvHeads;
  config.head_dim = kHeadDim;
  return config;
}

std::vector<float> RandomHeads(uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  std::vector<float> values(kKvHeads * kHeadDim);
  for (float& value : values) value = uniform(generator);
  return values;
}

// Element d of slot `offset` of a page, as a number.
float Element(const std::byte* page, KvFormat format, int64_t offset,
              int64_t index) {
  switch (format) {
    case KvFormat::kF32: {
      return reinterpret_cast<const float*>(page)[index];
    }
    case KvFormat::kBF16: {
      return ToF32(reinterpret_cast<const BF16*>(page)[index]);
    }
    case KvFormat::kInt8: {
      const float scale = reinterpret_cast<const float*>(page)[offset];
      const auto* codes = reinterpret_cast<const int8_t*>(page + 64);
      return scale * static_cast<float>(codes[index]);
    }
  }
  return 0;
}

struct Read {
  std::vector<float> keys, values;  // [kv_heads, head_dim]
};

Read ReadSlot(const KvCache& cache, int64_t layer, int64_t slot) {
  const int64_t page = slot / kPageTokens;
  const int64_t offset = slot % kPageTokens;
  Read read;
  for (int64_t head = 0; head < kKvHeads; ++head) {
    for (int64_t d = 0; d < kHeadDim; ++d) {
      read.keys.push_back(Element(cache.key_page(layer, page, head),
                                  cache.format(), offset,
                                  d * kPageTokens + offset));
      read.values.push_back(Element(cache.value_page(layer, page, head),
                                    cache.format(), offset,
                                    offset * kHeadDim + d));
    }
  }
  return read;
}

// Half a step of int8, half a unit of bf16's last place; f32 is exact.
float Tolerance(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return 0;
    case KvFormat::kBF16:
      return 2.0f / 512;
    case KvFormat::kInt8:
      return 1.001f * 2.0f / 127 / 2;
  }
  return 0;
}

class KvCacheTest : public ::testing::TestWithParam<KvFormat> {};

TEST_P(KvCacheTest, WhatIsWrittenIsReadWhereItBelongs) {
  KvCache cache(Config(), GetParam(), kNumPages);
  EXPECT_EQ(cache.size_bytes(),
            kNumPages * KvCache::PageBytes(Config(), GetParam()));
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t slot = 0; slot < kNumPages * kPageTokens; ++slot) {
      const uint32_t seed = static_cast<uint32_t>(layer * 1000 + slot);
      cache.Write(layer, slot, RandomHeads(seed).data(),
                  RandomHeads(seed + 500).data());
    }
  }
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t slot = 0; slot < kNumPages * kPageTokens; ++slot) {
      const uint32_t seed = static_cast<uint32_t>(layer * 1000 + slot);
      const std::vector<float> keys = RandomHeads(seed);
      const std::vector<float> values = RandomHeads(seed + 500);
      const Read read = ReadSlot(cache, layer, slot);
      for (size_t i = 0; i < keys.size(); ++i) {
        ASSERT_NEAR(read.keys[i], keys[i], Tolerance(GetParam()));
        ASSERT_NEAR(read.values[i], values[i], Tolerance(GetParam()));
      }
    }
  }
}

// Or pages that prompts share would depend on who wrote them, and how.
TEST_P(KvCacheTest, APositionDoesNotDependOnItsNeighbours) {
  KvCache cache(Config(), GetParam(), kNumPages);
  const std::vector<float> large(kKvHeads * kHeadDim, 1000.0f);
  for (int64_t slot = 0; slot < 16; ++slot) {
    cache.Write(0, slot, large.data(), large.data());
  }
  cache.Write(0, 3, RandomHeads(1).data(), RandomHeads(2).data());
  cache.Write(1, 40, RandomHeads(1).data(), RandomHeads(2).data());
  const Read among = ReadSlot(cache, 0, 3);
  const Read alone = ReadSlot(cache, 1, 40);
  EXPECT_EQ(among.keys, alone.keys);
  EXPECT_EQ(among.values, alone.values);
  EXPECT_EQ(ReadSlot(cache, 0, 4).keys, ReadSlot(cache, 0, 2).keys);
}

TEST_P(KvCacheTest, ZerosAndWhatIsNotFinite) {
  KvCache cache(Config(), GetParam(), kNumPages);
  const std::vector<float> zeros(kKvHeads * kHeadDim);
  std::vector<float> broken(kKvHeads * kHeadDim, 1.0f);
  broken[0] = std::numeric_limits<float>::quiet_NaN();
  cache.Write(0, 5, zeros.data(), broken.data());
  const Read read = ReadSlot(cache, 0, 5);
  EXPECT_EQ(read.keys, zeros);
  EXPECT_TRUE(std::isnan(read.values[0]));
  // Other heads have a scale of their own.
  EXPECT_NEAR(read.values[kHeadDim], 1.0f, 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Formats, KvCacheTest,
                         ::testing::Values(KvFormat::kF32, KvFormat::kBF16,
                                           KvFormat::kInt8),
                         [](const auto& info) {
                           return std::string(KvFormatName(info.param));
                         });

}  // namespace
}  // namespace expertmesh::router
