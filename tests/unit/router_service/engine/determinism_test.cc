// A request's result is a function of the request: to the bit, whatever runs
// beside it and however the engine is set up.

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "tests/support/local_engine.h"

namespace expertmesh::testing {
namespace {

using router::SequenceRequest;

constexpr int64_t kVocab = 320;
constexpr int64_t kGenerated = 24;

// Prompt and parameters number `seed` of a fixed, varied set.
SequenceRequest MakeRequest(int seed, int64_t prompt_size) {
  SequenceRequest request;
  for (int64_t i = 0; i < prompt_size; ++i) {
    request.prompt.push_back(
        static_cast<int32_t>((seed * 7919 + i * 104729 + i * i * 31) % kVocab));
  }
  request.max_tokens = kGenerated;
  request.logprobs = 20;
  request.prompt_logprobs = 20;
  request.sampling.temperature = 0.9f;
  request.sampling.top_k = 50;
  request.sampling.seed = static_cast<uint64_t>(seed);
  return request;
}

SequenceRequest Probe() { return MakeRequest(1, 75); }

std::unique_ptr<LocalEngine> LoadEngine(const LocalEngineOptions& options,
                                        const std::string& folder) {
  auto engine = LocalEngine::Load(
      EXPERTMESH_SOURCE_DIR "/tests/golden/" + folder, options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

struct Precision {
  std::string folder;
  DType dtype;
  KvFormat kv_format;
  std::optional<DType> wire_dtype = std::nullopt;  // unset: dtype
};

class DeterminismTest : public ::testing::TestWithParam<Precision> {
 protected:
  LocalEngineOptions Options() const {
    LocalEngineOptions options;
    options.model.router_dtype = GetParam().dtype;
    options.model.wire_dtype = GetParam().wire_dtype.value_or(GetParam().dtype);
    options.model.kv_format = GetParam().kv_format;
    return options;
  }
  std::unique_ptr<LocalEngine> LoadEngine(const LocalEngineOptions& options) {
    return testing::LoadEngine(options, GetParam().folder);
  }
  // The probe alone, in one chunk, on one thread.
  std::string Expected() {
    LocalEngineOptions options = Options();
    options.model.num_threads = 1;
    const auto record = LoadEngine(options)->Run(Probe());
    EXPECT_TRUE(record.status.ok()) << record.status;
    EXPECT_EQ(record.prompt_logprobs.size(), 74u);
    EXPECT_EQ(record.logprobs.size(), static_cast<size_t>(kGenerated));
    return Bits(record);
  }
};

TEST_P(DeterminismTest, AmongThirtyOneOthers) {
  const std::string expected = Expected();
  LocalEngineOptions options = Options();
  options.model.kv_cache_tokens = 8192;
  const auto engine = LoadEngine(options);
  std::vector<std::shared_ptr<RecordingSink>> others;
  for (int i = 0; i < 16; ++i) {
    others.push_back(engine->Submit(MakeRequest(100 + i, 3 + 11 * i)));
  }
  const auto probe = engine->Submit(Probe());
  for (int i = 0; i < 15; ++i) {
    others.push_back(engine->Submit(MakeRequest(200 + i, 5 + 9 * i)));
  }
  EXPECT_EQ(Bits(probe->Await()), expected);
  for (const auto& other : others) EXPECT_TRUE(other->Await().status.ok());
}

TEST_P(DeterminismTest, OtherChunkSizes) {
  const std::string expected = Expected();
  for (const int64_t chunk : {1, 7, 16, 33}) {
    LocalEngineOptions options = Options();
    options.model.max_step_tokens = chunk;
    options.engine.scheduler.max_sequences = 1;
    EXPECT_EQ(Bits(LoadEngine(options)->Run(Probe())), expected)
        << "chunks of " << chunk;
  }
}

TEST_P(DeterminismTest, OtherThreadCounts) {
  const std::string expected = Expected();
  for (const int threads : {2, 3, 5}) {
    LocalEngineOptions options = Options();
    options.model.num_threads = threads;
    EXPECT_EQ(Bits(LoadEngine(options)->Run(Probe())), expected)
        << threads << " threads";
  }
}

TEST_P(DeterminismTest, TwoMicroBatches) {
  const std::string expected = Expected();
  for (const int64_t chunk : {5, 512}) {
    LocalEngineOptions options = Options();
    options.model.micro_batches = 2;
    options.model.max_step_tokens = chunk;
    const auto engine = LoadEngine(options);
    const auto other = engine->Submit(MakeRequest(400, 30));
    EXPECT_EQ(Bits(engine->Run(Probe())), expected);
    EXPECT_TRUE(other->Await().status.ok());
  }
}

TEST_P(DeterminismTest, OtherNumbersOfEndpointsAndMessageSizes) {
  const std::string expected = Expected();
  for (const int endpoints : {2, 4}) {
    LocalEngineOptions options = Options();
    options.model.num_endpoints = endpoints;
    options.model.max_message_bytes = 1000;  // a few tokens a message
    EXPECT_EQ(Bits(LoadEngine(options)->Run(Probe())), expected)
        << endpoints << " endpoints";
  }
}

TEST_P(DeterminismTest, Waiting) {
  const std::string expected = Expected();
  LocalEngineOptions options = Options();
  options.model.capacity = {.capacity_factor = 1.0, .min_capacity = 1};
  const auto record = LoadEngine(options)->Run(Probe());
  EXPECT_GT(record.routing[router::RowOutcome::kWaited], 0u);
  EXPECT_EQ(record.routing.GateMassKept(), 1.0);
  EXPECT_EQ(Bits(record), expected);
}

TEST_P(DeterminismTest, Preempted) {
  const std::string expected = Expected();
  LocalEngineOptions options = Options();
  // Room for the probe and not quite for the others: the youngest, the probe,
  // gives way while they grow.
  options.model.kv_cache_tokens = 256;
  const auto engine = LoadEngine(options);
  SequenceRequest long_one = MakeRequest(300, 60);
  long_one.max_tokens = 120;
  SequenceRequest long_two = MakeRequest(301, 62);
  long_two.max_tokens = 120;
  const auto first = engine->Submit(long_one);
  const auto second = engine->Submit(long_two);
  const auto probe = engine->Submit(Probe());
  EXPECT_EQ(Bits(probe->Await()), expected);
  EXPECT_TRUE(first->Await().status.ok());
  EXPECT_TRUE(second->Await().status.ok());
  engine->engine->Drain(absl::InfiniteDuration());
  const auto& preemptions = engine->metrics->Counter(
      "expertmesh_router_preemptions_total",
      "Requests that gave their KV cache to an older one.");
  EXPECT_GT(preemptions.Value(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    DTypes, DeterminismTest,
    ::testing::Values(
        Precision{"qwen3_moe", DType::kF32, KvFormat::kF32},
        Precision{"qwen3_moe_bf16", DType::kBF16, KvFormat::kBF16},
        Precision{"qwen2_moe", DType::kF32, KvFormat::kF32},
        Precision{"qwen3_moe", DType::kF32, KvFormat::kInt8},
        Precision{"qwen2_moe", DType::kF32, KvFormat::kInt8},
        Precision{"qwen3_moe", DType::kF32, KvFormat::kF32, DType::kInt8}),
    [](const auto& info) {
      return info.param.folder + "_kv_" +
             std::string(KvFormatName(info.param.kv_format)) +
             (info.param.wire_dtype
                  ? "_wire_" + std::string(DTypeName(*info.param.wire_dtype))
                  : "");
    });

}  // namespace
}  // namespace expertmesh::testing
