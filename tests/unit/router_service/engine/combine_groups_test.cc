// Combine groups at the level of requests: with groups of any size, results are
// the same to the bit wherever experts are and whoever adds.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/checkpoint_variant.h"
#include "tests/support/local_engine.h"

namespace expertmesh::testing {
namespace {

using router::SequenceRequest;

constexpr int64_t kVocab = 320;
constexpr int kTopK = 5;  // of 8 experts

SequenceRequest MakeRequest(int seed, int64_t prompt_size) {
  SequenceRequest request;
  for (int64_t i = 0; i < prompt_size; ++i) {
    request.prompt.push_back(
        static_cast<int32_t>((seed * 7919 + i * 104729 + i * i * 31) % kVocab));
  }
  request.max_tokens = 12;
  request.logprobs = 20;
  request.prompt_logprobs = 20;
  request.sampling.seed = static_cast<uint64_t>(seed);
  return request;
}

struct Precision {
  std::string folder;
  DType dtype;
  DType wire_dtype;
};

class CombineGroupsTest : public ::testing::TestWithParam<Precision> {
 protected:
  LocalEngineOptions Options(int64_t group_size) const {
    LocalEngineOptions options;
    options.model.router_dtype = GetParam().dtype;
    options.model.wire_dtype = GetParam().wire_dtype;
    options.model.combine_group_size = group_size;
    return options;
  }
  // Sums that came back are added to *sums.
  std::string Run(const LocalEngineOptions& options, int64_t* sums) {
    auto engine = LocalEngine::Load(checkpoint_->directory(), options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    const auto other = (*engine)->Submit(MakeRequest(2, 20));
    const auto record = (*engine)->Run(MakeRequest(1, 60));
    EXPECT_TRUE(record.status.ok()) << record.status;
    EXPECT_EQ(record.logprobs.size(), 12u);
    EXPECT_TRUE(other->Await().status.ok());
    *sums += (*engine)->model->local_transport->num_sums();
    return Bits(record);
  }
  // Rows alone come back, to be added up by the router.
  std::string Expected(int64_t group_size) {
    LocalEngineOptions options = Options(group_size);
    options.model.adds_rows = false;
    int64_t sums = 0;
    const std::string bits = Run(options, &sums);
    EXPECT_EQ(sums, 0);
    return bits;
  }

  const absl::StatusOr<CheckpointVariant> checkpoint_ =
      CheckpointVariant::WithTopK(
          EXPERTMESH_SOURCE_DIR "/tests/golden/" + GetParam().folder, kTopK);
};

TEST_P(CombineGroupsTest, OneExpertAndAllGiveTheSameBitsOthersDoNot) {
  EXPECT_EQ(Expected(1), Expected(8));
  // Activations rounded to bf16 may hide the difference.
  if (GetParam().dtype == DType::kF32) EXPECT_NE(Expected(1), Expected(4));
}

TEST_P(CombineGroupsTest, PlacementChangesNoBit) {
  for (const int64_t group_size : {1, 4, 8}) {
    const std::string expected = Expected(group_size);
    for (const int endpoints : {1, 2, 4}) {
      LocalEngineOptions options = Options(group_size);
      options.model.num_endpoints = endpoints;
      int64_t sums = 0;
      EXPECT_EQ(Run(options, &sums), expected)
          << "groups of " << group_size << " at " << endpoints;
      // Five experts of eight are never at one of two endpoints, and three of a
      // group of four never at one of four.
      const bool any =
          endpoints == 1
              ? group_size > 1
              : group_size == 4 &&
                    (endpoints == 2 || GetParam().wire_dtype == DType::kF32);
      EXPECT_EQ(sums > 0, any) << group_size << " at " << endpoints;
    }
  }
}

TEST_P(CombineGroupsTest, ReplicasChangeNoBit) {
  for (const int64_t group_size : {1, 4, 8}) {
    LocalEngineOptions options = Options(group_size);
    options.model.num_endpoints = 3;
    options.model.is_replicated = true;
    int64_t sums = 0;
    EXPECT_EQ(Run(options, &sums), Expected(group_size)) << group_size;
    // Whether enough rows of a group meet at one replica is up to the times
    // that replicas take.
    if (group_size == 1) EXPECT_EQ(sums, 0);
  }
}

TEST_P(CombineGroupsTest, CapacityMicroBatchesAndMessageSizesChangeNoBit) {
  for (const int64_t group_size : {1, 4, 8}) {
    const std::string expected = Expected(group_size);
    LocalEngineOptions waits = Options(group_size);
    waits.model.capacity = {.capacity_factor = 1.0, .min_capacity = 1};
    LocalEngineOptions turns = Options(group_size);
    turns.model.micro_batches = 2;
    LocalEngineOptions parts = Options(group_size);
    parts.model.max_message_bytes = 1000;
    for (const LocalEngineOptions& options : {waits, turns, parts}) {
      int64_t sums = 0;
      EXPECT_EQ(Run(options, &sums), expected) << group_size;
      EXPECT_EQ(sums > 0, group_size > 1);
    }
  }
}

TEST_P(CombineGroupsTest, AReplicaThatIsLostChangesNoBit) {
  for (const int64_t group_size : {4, 8}) {
    LocalEngineOptions options = Options(group_size);
    options.model.num_endpoints = 2;
    options.model.is_replicated = true;
    auto engine = LocalEngine::Load(checkpoint_->directory(), options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    const auto probe = (*engine)->Submit(MakeRequest(1, 60));
    probe->AwaitTokens(3);
    (*engine)->model->local_transport->SetDown(0, true);
    probe->AwaitTokens(6);
    (*engine)->model->local_transport->SetDown(0, false);
    (*engine)->model->local_transport->SetDown(1, true);
    EXPECT_EQ(Bits(probe->Await()), Expected(group_size)) << group_size;
  }
}

// A NaN in a sum: all of its rows are asked for once more, each for itself.
TEST_P(CombineGroupsTest, BadSumsAreAskedForAgain) {
  for (const int64_t group_size : {1, 4, 8}) {
    LocalEngineOptions options = Options(group_size);
    options.model.num_endpoints = 2;
    options.model.is_replicated = true;
    auto engine = LocalEngine::Load(checkpoint_->directory(), options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    (*engine)->model->local_transport->Poison(1);
    const auto record = (*engine)->Run(MakeRequest(1, 60));
    EXPECT_TRUE(record.status.ok()) << record.status;
    EXPECT_EQ(Bits(record), Expected(group_size)) << group_size;
  }
}

// Experts 4 to 7 are lost with rows in flight: tokens get other experts and
// weights, or do without, and what came back in sums comes anew as rows.
TEST_P(CombineGroupsTest, OtherExpertsAndNoneGiveTheSameBitsToo) {
  const auto checkpoint = CheckpointVariant::WithTopK(
      EXPERTMESH_SOURCE_DIR "/tests/golden/" + GetParam().folder, 4);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const router::OverflowPolicy policy :
       {router::OverflowPolicy::kNextBest, router::OverflowPolicy::kDrop}) {
    std::string expected;
    for (const bool adds_rows : {false, true}) {
      LocalEngineOptions options = Options(2);
      options.model.num_endpoints = 2;
      options.model.adds_rows = adds_rows;
      options.model.uncovered_timeout = absl::Minutes(5);
      auto engine = LocalEngine::Load(checkpoint->directory(), options);
      ASSERT_TRUE(engine.ok()) << engine.status();
      (*engine)->model->local_transport->SetDown(1, true);
      SequenceRequest request = MakeRequest(1, 60);
      request.policy = policy;
      const auto record = (*engine)->Run(request);
      ASSERT_TRUE(record.status.ok()) << record.status;
      EXPECT_LT(record.routing.GateMassKept(), 1);
      if (!adds_rows) expected = Bits(record);
      EXPECT_EQ(Bits(record), expected);
    }
  }
}

TEST_P(CombineGroupsTest, OneSumForEachTokenAndLayer) {
  for (const auto& [group_size, sums] : {std::pair(1, 0), {8, 1}}) {
    LocalModelOptions options = Options(group_size).model;
    auto model = LocalModel::Load(checkpoint_->directory(), options);
    ASSERT_TRUE(model.ok()) << model.status();
    constexpr int64_t kTokens = 40;
    const std::vector<int32_t> tokens = MakeRequest(1, kTokens).prompt;
    SingleSequence(model->get()).Append(tokens, kTokens);
    const ModelConfig& config = (*model)->config();
    const int64_t rows = sums > 0 ? 0 : kTopK;
    const auto row_bytes = static_cast<int64_t>(
        RowBytes(GetParam().wire_dtype, config.hidden_size));
    EXPECT_EQ((*model)->local_transport->answer_bytes(),
              kTokens * config.num_layers *
                  (rows * row_bytes + sums * config.hidden_size * 4))
        << "groups of " << group_size;
  }
}

INSTANTIATE_TEST_SUITE_P(
    DTypes, CombineGroupsTest,
    ::testing::Values(Precision{"qwen3_moe", DType::kF32, DType::kF32},
                      Precision{"qwen3_moe_bf16", DType::kBF16, DType::kBF16},
                      Precision{"qwen3_moe", DType::kF32, DType::kInt8}),
    [](const auto& info) {
      return info.param.folder + "_wire_" +
             std::string(DTypeName(info.param.wire_dtype));
    });

}  // namespace
}  // namespace expertmesh::testing
