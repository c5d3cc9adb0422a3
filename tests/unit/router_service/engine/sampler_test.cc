#include "router_service/engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "services/linalg/gemm.h"
#include "tests/support/allocation_counter.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t SampleOnce(const SamplingParams& params, std::vector<float> logits,
                   const SampleContext& context = {}) {
  Sampler sampler(static_cast<int64_t>(logits.size()));
  return sampler.Sample(params, context, absl::MakeSpan(logits));
}

// Logits as the penalties leave them, before temperature.
std::vector<float> Penalised(const SamplingParams& params,
                             std::vector<float> logits,
                             const SampleContext& context) {
  Sampler sampler(static_cast<int64_t>(logits.size()));
  sampler.Sample(params, context, absl::MakeSpan(logits));
  return logits;
}

// The tokens that 4000 seeds give.
std::set<int32_t> Survivors(SamplingParams params,
                            const std::vector<float>& logits) {
  Sampler sampler(static_cast<int64_t>(logits.size()));
  std::set<int32_t> survivors;
  for (params.seed = 0; params.seed < 4000; ++params.seed) {
    std::vector<float> scratch = logits;
    survivors.insert(sampler.Sample(params, {}, absl::MakeSpan(scratch)));
  }
  return survivors;
}

std::vector<float> Logs(const std::vector<float>& probabilities) {
  std::vector<float> logits;
  for (const float p : probabilities) logits.push_back(std::log(p));
  return logits;
}

TEST(SamplerTest, GreedyTakesTheHighestAndTheLowerIdOfTwo) {
  EXPECT_EQ(SampleOnce({}, {0.5f, 2.0f, -1.0f}), 1);
  EXPECT_EQ(SampleOnce({}, {1.0f, 3.0f, 3.0f}), 1);
  std::vector<float> wide(1000, -5.0f);
  wide[997] = wide[998] = 4.0f;
  EXPECT_EQ(SampleOnce({}, wide), 997);
}

TEST(SamplerTest, OnlyFiniteLogitsTakePart) {
  for (const float temperature : {0.0f, 1.0f}) {
    const SamplingParams params = {.temperature = temperature};
    EXPECT_EQ(SampleOnce(params, {kNan, -3.0f, kInf, -kInf}), 1);
    EXPECT_EQ(SampleOnce(params, {kNan, kInf, -kInf}), -1);
    EXPECT_EQ(SampleOnce(params, {}), -1);
    const SamplingParams top = {
        .temperature = temperature, .top_k = 2, .top_p = 0.9f};
    EXPECT_EQ(SampleOnce(top, {kInf, kNan, -kInf, 0.0f}), 3);
  }
}

TEST(SamplerTest, BannedIdsAreNeverSampled) {
  const std::vector<int32_t> banned = {2, 0, -1, 99};  // the last are no ids
  const SampleContext context = {.banned = banned};
  EXPECT_EQ(SampleOnce({}, {5.0f, 1.0f, 9.0f}, context), 1);
  EXPECT_EQ(SampleOnce({.temperature = 2.0f}, {5.0f, 1.0f, 9.0f}, context), 1);
  EXPECT_EQ(SampleOnce({}, {5.0f}, context), -1);
}

TEST(SamplerTest, PenaltiesByHand) {
  const std::vector<int32_t> prompt = {0, 1, 1, 77};
  const std::vector<int32_t> generated = {1, 2, 2, 2};
  const SampleContext context = {.prompt = prompt, .generated = generated};
  const std::vector<float> logits = {4.0f, -4.0f, 1.0f, 3.0f};
  // Once per token, however often it occurred, in prompt or output.
  EXPECT_THAT(Penalised({.repetition_penalty = 2.0f}, logits, context),
              ElementsAre(2.0f, -8.0f, 0.5f, 3.0f));
  // Output only.
  EXPECT_THAT(Penalised({.presence_penalty = 0.5f}, logits, context),
              ElementsAre(4.0f, -4.5f, 0.5f, 3.0f));
  EXPECT_THAT(Penalised({.frequency_penalty = 0.25f}, logits, context),
              ElementsAre(4.0f, -4.25f, 0.25f, 3.0f));
  // Repetition first: token 2 is 1 / 2 − (0.5 + 3 · 0.25).
  EXPECT_THAT(Penalised({.repetition_penalty = 2.0f,
                         .presence_penalty = 0.5f,
                         .frequency_penalty = 0.25f},
                        logits, context),
              ElementsAre(2.0f, -8.75f, -0.75f, 3.0f));
}

TEST(SamplerTest, PenaltiesLeaveNothingBehind) {
  Sampler sampler(2);
  const std::vector<int32_t> seen = {0, 0};
  const SamplingParams params = {.repetition_penalty = 2.0f,
                                 .frequency_penalty = 1.0f};
  for (int i = 0; i < 2; ++i) {
    std::vector<float> logits = {8.0f, 1.0f};
    EXPECT_EQ(sampler.Sample(params, {.prompt = seen, .generated = seen},
                             absl::MakeSpan(logits)),
              0);
    EXPECT_THAT(logits, ElementsAre(2.0f, 1.0f));
  }
}

TEST(SamplerTest, TopKKeepsTheLowerIdsOfATie) {
  const std::vector<float> logits = {0.0f, 1.0f, 1.0f, 2.0f, 1.0f};
  const auto survivors = [&](int32_t top_k) {
    return Survivors({.temperature = 1.0f, .top_k = top_k}, logits);
  };
  EXPECT_THAT(survivors(1), ElementsAre(3));
  EXPECT_THAT(survivors(2), ElementsAre(1, 3));
  EXPECT_THAT(survivors(3), ElementsAre(1, 2, 3));
  EXPECT_THAT(survivors(9), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(survivors(0), ElementsAre(0, 1, 2, 3, 4));
}

TEST(SamplerTest, TopPKeepsTokensUntilTheMassIsReached) {
  // Powers of two, so that the masses are exact: by likelihood ids 2, 0, 3, 1.
  const std::vector<float> logits = Logs({0.25f, 0.125f, 0.5f, 0.125f});
  const auto survivors = [&](float top_p) {
    return Survivors({.temperature = 1.0f, .top_p = top_p}, logits);
  };
  EXPECT_THAT(survivors(1e-9f), ElementsAre(2));
  EXPECT_THAT(survivors(0.0f), ElementsAre(2));
  EXPECT_THAT(survivors(0.5f), ElementsAre(2));
  EXPECT_THAT(survivors(0.51f), ElementsAre(0, 2));
  EXPECT_THAT(survivors(0.76f), ElementsAre(0, 1, 2));  // tie: the lower id
  EXPECT_THAT(survivors(0.99f), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(survivors(1.0f), ElementsAre(0, 1, 2, 3));
}

TEST(SamplerTest, TopPCountsTheMassThatTopKLeft) {
  // Of 0.4, 0.3 and 0.3 top-k leaves 0.4 / 0.7 = 0.57 and 0.43.
  const std::vector<float> logits = Logs({0.4f, 0.3f, 0.3f});
  EXPECT_THAT(
      Survivors({.temperature = 1.0f, .top_k = 2, .top_p = 0.5f}, logits),
      ElementsAre(0));
  EXPECT_THAT(Survivors({.temperature = 1.0f, .top_p = 0.5f}, logits),
              ElementsAre(0, 1));
}

TEST(SamplerTest, MinPIsRelativeToTheLikeliest) {
  const std::vector<float> logits = Logs({0.1f, 0.6f, 0.3f});
  const auto survivors = [&](float min_p) {
    return Survivors({.temperature = 1.0f, .min_p = min_p}, logits);
  };
  EXPECT_THAT(survivors(0.1f), ElementsAre(0, 1, 2));
  EXPECT_THAT(survivors(0.2f), ElementsAre(1, 2));
  EXPECT_THAT(survivors(0.6f), ElementsAre(1));
  EXPECT_THAT(survivors(1.0f), ElementsAre(1));
  EXPECT_THAT(survivors(5.0f), ElementsAre(1));
}

TEST(SamplerTest, TemperatureExtremesStayFinite) {
  EXPECT_EQ(SampleOnce({.temperature = 1e-40f}, {3e38f, 2e38f, -3e38f}), 0);
  EXPECT_THAT(Survivors({.temperature = 1e30f}, {1.0f, 50.0f}),
              ElementsAre(0, 1));
}

TEST(SamplerTest, ADrawIsAFunctionOfSeedAndPosition) {
  const std::vector<float> logits(64, 0.0f);  // token = ⌊64 u⌋
  const std::vector<int32_t> generated = {5, 5, 5};
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(SampleOnce({.temperature = 1.0f, .seed = seed}, logits,
                         {.generated = generated}),
              static_cast<int32_t>(64 * CounterUniform(seed, 3)));
  }
}

// Chi-square with 7 degrees of freedom: 24.3 is passed by chance once in a
// thousand. The seeds are fixed.
TEST(SamplerTest, FrequenciesFollowTheProbabilities) {
  const std::vector<float> weights = {1, 2, 3, 4, 6, 8, 12, 28};  // of 64
  constexpr int kDraws = 32000;
  Sampler sampler(8);
  std::vector<int> counts(8);
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> logits = Logs(weights);
    for (float& logit : logits) logit *= 0.5f;  // undone by the temperature
    const SamplingParams params = {.temperature = 0.5f,
                                   .seed = static_cast<uint64_t>(i)};
    ++counts[sampler.Sample(params, {}, absl::MakeSpan(logits))];
  }
  double chi_square = 0;
  for (int token = 0; token < 8; ++token) {
    const double expected = kDraws * weights[token] / 64;
    chi_square += std::pow(counts[token] - expected, 2) / expected;
  }
  EXPECT_LT(chi_square, 24.3);
}

// The same rules by a full sort.
int32_t PlainSample(const SamplingParams& params,
                    const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const float max = logits[ids[0]];
  const auto weight = [&](int32_t id) {
    return std::exp((logits[id] - max) / params.temperature);
  };
  if (params.top_k > 0 && params.top_k < static_cast<int32_t>(ids.size())) {
    ids.resize(params.top_k);
  }
  double total = 0;
  for (const int32_t id : ids) total += weight(id);
  std::vector<int32_t> kept;
  double before = 0;
  for (const int32_t id : ids) {
    const bool in_nucleus =
        kept.empty() || params.top_p >= 1 || before < params.top_p * total;
    before += weight(id);
    if (in_nucleus && weight(id) >= params.min_p) kept.push_back(id);
  }
  std::sort(kept.begin(), kept.end());
  double kept_total = 0;
  for (const int32_t id : kept) kept_total += weight(id);
  double sum = 0;
  for (const int32_t id : kept) {
    sum += weight(id);
    if (sum > kept_total * CounterUniform(params.seed, 0)) return id;
  }
  return -1;
}

TEST(SamplerTest, PartialSelectionEqualsAFullSort) {
  std::mt19937 random(99);
  for (int trial = 0; trial < 3000; ++trial) {
    const int vocab = 1 + static_cast<int>(random() % 400);
    // From flat to peaked, with many ties.
    const int spread = 1 + static_cast<int>(random() % 40);
    std::vector<float> logits(vocab);
    for (float& logit : logits) {
      logit = static_cast<float>(random() % spread) * 0.5f;
    }
    SamplingParams params;
    params.temperature = 0.25f + static_cast<float>(random() % 8) * 0.25f;
    params.top_k = static_cast<int32_t>(random() % (vocab + 2));
    if (random() % 2 == 0) params.top_k = 0;
    params.top_p = static_cast<float>(random() % 101) / 100.0f;
    params.min_p = static_cast<float>(random() % 4) * 0.1f;
    params.seed = trial;
    ASSERT_EQ(SampleOnce(params, logits), PlainSample(params, logits))
        << "trial " << trial << ", vocabulary " << vocab << ", temperature "
        << params.temperature << ", top_k " << params.top_k << ", top_p "
        << params.top_p << ", min_p " << params.min_p;
  }
}

// Vocabularies of many blocks, some of them without weight or without a finite
// logit, from cold to hot.
TEST(SamplerTest, BlocksOfAllSortsEqualAFullSort) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 600; ++trial) {
    const int vocab = 1 + static_cast<int>(random() % 4000);
    std::normal_distribution<float> bulk(
        0.0f, 0.5f + static_cast<float>(random() % 40));
    std::vector<float> logits(vocab);
    for (int id = 0; id < vocab; ++id) {
      logits[id] = bulk(random);
      const int block = id / 256;
      if (block % 3 == trial % 3) logits[id] -= 300.0f;
      if (block % 5 == trial % 5 && vocab > 256) logits[id] = -kInf;
      if (random() % 500 == 0 && vocab > 1) logits[id] = -kInf;
    }
    if (*std::max_element(logits.begin(), logits.end()) == -kInf) continue;
    SamplingParams params;
    params.temperature = std::pow(10.0f, static_cast<float>(random() % 5) - 2);
    params.top_p = random() % 2 == 0 ? 1.0f : 0.9f;
    params.min_p = random() % 2 == 0 ? 0.0f : 0.01f;
    params.seed = trial;
    std::vector<float> with_others = logits;  // what takes no part, otherwise
    for (float& logit : with_others) {
      if (logit == -kInf) logit = random() % 2 == 0 ? kNan : kInf;
    }
    const int32_t expected = PlainSample(params, logits);
    ASSERT_EQ(SampleOnce(params, logits), expected) << "trial " << trial;
    ASSERT_EQ(SampleOnce(params, with_others), expected) << "trial " << trial;
  }
}

TEST(SamplerTest, GreedyFindsTheFirstOfManyBlocks) {
  for (const int first : {0, 255, 256, 999}) {
    std::vector<float> logits(1000, -2.0f);
    logits[first] = logits.back() = 3.0f;
    logits[100] = first == 100 ? 3.0f : kNan;
    EXPECT_EQ(SampleOnce({}, logits), first);
  }
}

TEST(SamplerTest, AllocatesOnlyAtConstruction) {
  ASSERT_FALSE(IsaName().empty());  // kernels are chosen at their first use
  constexpr int kVocab = 5000;
  Sampler sampler(kVocab);
  std::vector<float> logits(kVocab);
  const std::vector<int32_t> ids = {1, 2, 3};
  const SampleContext context = {.prompt = ids, .generated = ids};
  for (const int32_t top_k : {0, 1, 50, 4000}) {
    for (const float top_p : {0.5f, 1.0f}) {
      std::iota(logits.begin(), logits.end(), -5000.0f);  // worst for top-k
      const int64_t before = NumAllocations();
      sampler.Sample({.temperature = 1000.0f,
                      .top_k = top_k,
                      .top_p = top_p,
                      .repetition_penalty = 1.1f,
                      .frequency_penalty = 0.1f},
                     context, absl::MakeSpan(logits));
      EXPECT_EQ(NumAllocations(), before) << top_k << ", " << top_p;
    }
  }
}

TEST(LogprobTest, ByHand) {
  const TokenLogprob result = LogprobOf(Logs({0.25f, 0.5f, 0.125f, 0.125f}),
                                        /*token_id=*/0, /*num_top=*/3);
  EXPECT_EQ(result.token_id, 0);
  EXPECT_NEAR(result.logprob, std::log(0.25), 1e-6);
  ASSERT_EQ(result.top.size(), 3u);
  EXPECT_THAT(result.top[0], Pair(1, testing::FloatNear(std::log(0.5f), 1e-6)));
  EXPECT_THAT(result.top[1],
              Pair(0, testing::FloatNear(std::log(0.25f), 1e-6)));
  EXPECT_THAT(result.top[2],  // tie: the lower id
              Pair(2, testing::FloatNear(std::log(0.125f), 1e-6)));
  EXPECT_EQ(result.top[1].second, result.logprob);
}

TEST(LogprobTest, IsStableAndHidesNothing) {
  EXPECT_NEAR(LogprobOf(std::vector<float>{1e4f, 1e4f}, 1, 0).logprob,
              -std::log(2.0), 1e-6);
  EXPECT_NEAR(LogprobOf(std::vector<float>{0.0f, -1000.0f}, 1, 0).logprob,
              -1000.0, 1e-3);
  // A flat vocabulary: a float sum would drift.
  const std::vector<float> flat(150000, 3.0f);
  EXPECT_NEAR(LogprobOf(flat, 149999, 0).logprob, -std::log(150000.0), 1e-6);
}

TEST(LogprobTest, LogitsThatAreNotFiniteCountAsNothing) {
  const std::vector<float> logits = {kNan, 2.0f, -kInf};
  EXPECT_EQ(LogprobOf(logits, 1, 0).logprob, 0.0f);
  EXPECT_EQ(LogprobOf(logits, 0, 0).logprob, -kInf);
  EXPECT_THAT(LogprobOf(logits, 2, 5).top, ElementsAre(Pair(1, 0.0f)));
  EXPECT_EQ(LogprobOf(std::vector<float>{kNan, -kInf}, 0, 2).logprob, -kInf);
}

}  // namespace
}  // namespace expertmesh::router
