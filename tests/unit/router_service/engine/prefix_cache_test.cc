// Answers are the same to the bit whether keys and values are computed or
// found.

#include <gtest/gtest.h>

#include <random>

#include "tests/support/local_engine.h"

namespace expertmesh::testing {
namespace {

using router::OverflowPolicy;
using router::RowOutcome;
using router::SequenceRequest;

constexpr int64_t kVocab = 320;
constexpr int64_t kRowsPerToken = 3 * 2;  // layers, top_k

std::vector<int32_t> Tokens(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % kVocab);
  return tokens;
}

SequenceRequest MakeRequest(std::vector<int32_t> prompt, int64_t max_tokens) {
  SequenceRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.logprobs = 20;
  request.sampling.temperature = 0.9f;
  request.sampling.seed = request.prompt.back();
  return request;
}

std::vector<int32_t> Concatenated(std::vector<int32_t> a,
                                  const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class PrefixCacheTest : public ::testing::Test {
 protected:
  static std::unique_ptr<LocalEngine> LoadEngine(
      bool prefix_cache, LocalEngineOptions options = {}) {
    options.engine.prefix_cache = prefix_cache;
    auto engine = LocalEngine::Load(
        EXPERTMESH_SOURCE_DIR "/tests/golden/qwen3_moe", options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  static double Counter(const LocalEngine& engine, const std::string& name) {
    return engine.metrics->Counter("expertmesh_router_" + name, "").Value();
  }
};

TEST_F(PrefixCacheTest, TheSecondOfTwoEqualPromptsIsCached) {
  const auto engine = LoadEngine(true);
  const auto request = MakeRequest(Tokens(70, 1), 12);
  const auto first = engine->Run(request);
  const auto second = engine->Run(request);
  EXPECT_EQ(Bits(first), Bits(second));
  EXPECT_EQ(first.cached_tokens, 0);
  EXPECT_EQ(second.cached_tokens, 64);
  // What was not routed is not accounted for.
  EXPECT_EQ(first.routing[RowOutcome::kPrimary], (70 + 11) * kRowsPerToken);
  EXPECT_EQ(second.routing[RowOutcome::kPrimary],
            (70 - 64 + 11) * kRowsPerToken);
  EXPECT_EQ(second.routing.GateMassKept(), 1);
  EXPECT_EQ(Counter(*engine, "prefix_cache_lookup_tokens_total"), 140);
  EXPECT_EQ(Counter(*engine, "prefix_cache_hit_tokens_total"), 64);
}

TEST_F(PrefixCacheTest, AChatGoesOnFromItsOwnAnswer) {
  const auto engine = LoadEngine(true);
  const auto first = engine->Run(MakeRequest(Tokens(40, 1), 30));
  const auto turn = MakeRequest(
      Concatenated(Concatenated(Tokens(40, 1), first.tokens), Tokens(9, 2)),
      12);
  const auto second = engine->Run(turn);
  // The last new token was never an input: 69 computed, four pages.
  EXPECT_EQ(second.cached_tokens, 64);
  EXPECT_EQ(Bits(second), Bits(LoadEngine(false)->Run(turn)));
}

TEST_F(PrefixCacheTest, ScoresAndCountsAreOfTheWholePrompt) {
  const auto engine = LoadEngine(true);
  auto request = MakeRequest(Tokens(70, 1), 4);
  request.prompt_logprobs = 20;
  request.expert_counts = true;
  const auto first = engine->Run(request);
  const auto second = engine->Run(request);
  EXPECT_EQ(second.cached_tokens, 0);
  EXPECT_EQ(second.prompt_logprobs.size(), 69u);
  EXPECT_EQ(Bits(first), Bits(second));
  EXPECT_EQ(first.expert_rows, second.expert_rows);
}

TEST_F(PrefixCacheTest, AnExactRequestUsesNothingThatAPolicyChanged) {
  LocalEngineOptions options;
  options.model.capacity = {
      .capacity_factor = 0.5, .min_capacity = 1, .max_lost_gate_mass = 1};
  const auto engine = LoadEngine(true, options);
  const auto exact = MakeRequest(Tokens(70, 1), 12);
  for (const auto policy : {OverflowPolicy::kDrop, OverflowPolicy::kNextBest}) {
    auto changed = exact;
    changed.policy = policy;
    const auto record = engine->Run(changed);
    EXPECT_LT(record.routing.GateMassKept(), 1);
    EXPECT_EQ(record.cached_tokens, 0);
  }
  const auto record = engine->Run(exact);
  EXPECT_EQ(record.cached_tokens, 0);
  EXPECT_EQ(Bits(record), Bits(LoadEngine(false, options)->Run(exact)));
  // The other way round it is as good: those pages are what was asked for.
  auto changed = exact;
  changed.policy = OverflowPolicy::kDrop;
  EXPECT_EQ(engine->Run(changed).cached_tokens, 64);
}

TEST_F(PrefixCacheTest, ForgottenPrefixesAreComputedAgain) {
  const auto engine = LoadEngine(true);
  const auto request = MakeRequest(Tokens(70, 1), 12);
  const auto first = engine->Run(request);
  engine->engine->ForgetPrefixes();
  const auto second = engine->Run(request);
  EXPECT_EQ(second.cached_tokens, 0);
  EXPECT_EQ(Bits(first), Bits(second));
  EXPECT_EQ(engine->Run(request).cached_tokens, 64);
}

TEST_F(PrefixCacheTest, WhatOtherNumericsComputedIsNotShared) {
  const auto engine = LoadEngine(true);
  const auto place = [&](bool is_preferred) {
    auto placement = std::make_shared<router::Placement>(3, 8);
    for (int64_t layer = 0; layer < 3; ++layer) {
      for (int64_t expert = 0; expert < 8; ++expert) {
        placement->Add(layer, expert, /*endpoint=*/0, is_preferred);
      }
    }
    engine->model->local_placement->Set(std::move(placement));
  };
  const auto request = MakeRequest(Tokens(70, 1), 12);
  place(/*is_preferred=*/false);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(engine->Run(request).cached_tokens, 0);
  place(/*is_preferred=*/true);
  EXPECT_EQ(engine->Run(request).cached_tokens, 0);
  EXPECT_EQ(engine->Run(request).cached_tokens, 64);
}

// Endpoint 0 has the mesh's numerics_id, endpoint 1 another; each holds all.
TEST_F(PrefixCacheTest, RequestsThatMayMixShareAmongThemselves) {
  LocalEngineOptions options;
  options.model.num_endpoints = 2;
  options.model.is_replicated = true;
  options.engine.mix_numerics = true;
  const auto engine = LoadEngine(true, options);
  auto placement = std::make_shared<router::Placement>(3, 8);
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (int64_t expert = 0; expert < 8; ++expert) {
      placement->Add(layer, expert, /*endpoint=*/0, /*is_preferred=*/true);
      placement->Add(layer, expert, /*endpoint=*/1, /*is_preferred=*/false);
    }
  }
  engine->model->local_placement->Set(std::move(placement));
  const auto mixed = MakeRequest(Tokens(70, 1), 12);
  auto exact = mixed;
  exact.exact = true;

  // Both in the same steps: what crosses of one is none of the other's affair.
  const auto first = engine->Submit(mixed);
  const auto beside = engine->Submit(exact);
  EXPECT_EQ(first->Await().cached_tokens, 0);
  EXPECT_EQ(beside->Await().cached_tokens, 0);
  const auto& dispatcher = *engine->model->dispatcher;
  const int64_t crossed = dispatcher.num_crossed_rows();
  EXPECT_GT(crossed, 0);
  EXPECT_EQ(engine->Run(exact).cached_tokens, 64);
  EXPECT_EQ(dispatcher.num_crossed_rows(), crossed);
  EXPECT_EQ(engine->Run(mixed).cached_tokens, 64);
}

TEST_F(PrefixCacheTest, AnExactRequestFindsNothingThatWasMixed) {
  LocalEngineOptions options;
  options.engine.mix_numerics = true;
  const auto engine = LoadEngine(true, options);
  const auto mixed = MakeRequest(Tokens(70, 1), 12);
  auto exact = mixed;
  exact.exact = true;
  EXPECT_EQ(engine->Run(mixed).cached_tokens, 0);
  EXPECT_EQ(engine->Run(mixed).cached_tokens, 64);
  EXPECT_EQ(engine->Run(exact).cached_tokens, 0);
  EXPECT_EQ(engine->Run(exact).cached_tokens, 64);
}

// Random prompts of few different parts, so that many begin alike, under a pool
// in which they preempt each other and evict what was kept.
TEST_F(PrefixCacheTest, RandomRequestsGetTheSameBits) {
  std::mt19937 random(7);
  std::vector<SequenceRequest> requests;
  for (int i = 0; i < 60; ++i) {
    std::vector<int32_t> prompt;
    for (uint32_t part = 0; part < 1 + random() % 3; ++part) {
      prompt = Concatenated(prompt, Tokens(24, random() % 3));
    }
    prompt = Concatenated(prompt, Tokens(random() % 4, 100 + i));
    SequenceRequest request =
        MakeRequest(prompt, 1 + static_cast<int64_t>(random() % 50));
    if (random() % 5 == 0) request.prompt_logprobs = 20;
    request.priority = static_cast<int32_t>(random() % 3);
    requests.push_back(std::move(request));
  }
  LocalEngineOptions roomy;
  const auto alone = LoadEngine(false, roomy);
  std::vector<std::string> expected;
  for (const SequenceRequest& request : requests) {
    expected.push_back(Bits(alone->Run(request)));
  }

  LocalEngineOptions tight;
  tight.model.kv_cache_tokens = 256;
  tight.model.max_step_tokens = 40;
  tight.engine.scheduler.max_sequences = 8;
  for (const bool prefix_cache : {true, false}) {
    const auto engine = LoadEngine(prefix_cache, tight);
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (const SequenceRequest& request : requests) {
      sinks.push_back(engine->Submit(request));
    }
    int64_t cached_tokens = 0;
    for (size_t i = 0; i < sinks.size(); ++i) {
      const auto record = sinks[i]->Await();
      ASSERT_TRUE(record.status.ok()) << record.status;
      EXPECT_EQ(Bits(record), expected[i]) << "request " << i;
      const auto size = static_cast<int64_t>(requests[i].prompt.size());
      EXPECT_EQ(record.routing[RowOutcome::kPrimary],
                (size - record.cached_tokens +
                 static_cast<int64_t>(record.tokens.size()) - 1) *
                    kRowsPerToken);
      cached_tokens += record.cached_tokens;
    }
    engine->engine->Drain(absl::InfiniteDuration());
    EXPECT_EQ(engine->engine->load().kv_cache_usage_ratio, 0);
    EXPECT_GT(Counter(*engine, "preemptions_total"), 0);
    EXPECT_EQ(cached_tokens > 0, prefix_cache);
    EXPECT_EQ(Counter(*engine, "prefix_cache_evicted_pages_total") > 0,
              prefix_cache);
  }
}

}  // namespace
}  // namespace expertmesh::testing
