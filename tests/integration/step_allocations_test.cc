// A warm step of the router allocates nothing but what gRPC needs for its
// slices, with experts in a service of their own reached through shared memory.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/allocation_counter.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

constexpr int64_t kContext = 256;
constexpr int64_t kSteps = 100;
constexpr int kAttempts = 10;
// A batch's header, and the reference counts of its rows and of its answer's.
constexpr int64_t kSlicesPerMessage = 3;
// What gRPC does beside the steps, which take long on a busy machine, and lists
// that grow with the context. Less than one for each message.
constexpr int64_t kElsewhere = 150;

// One token of one sequence at `position`.
void MakeDecode(int64_t position, router::TokenBatch* batch) {
  batch->Clear();
  batch->token_ids.push_back(static_cast<int32_t>(position % 97));
  batch->positions.push_back(static_cast<int32_t>(position));
  batch->slot_mapping.push_back(static_cast<int32_t>(position));
  batch->policy.push_back(router::OverflowPolicy::kWait);
  batch->seq_starts.push_back(1);
  batch->max_blocks = kContext / kPageTokens;
  for (int32_t page = 0; page < batch->max_blocks; ++page) {
    batch->block_tables.push_back(page);
  }
}

class StepAllocationsTest : public ::testing::TestWithParam<DType> {};

TEST_P(StepAllocationsTest, AWarmStepAllocatesNothingButSlices) {
  LocalModelOptions options;
  options.wire_dtype = GetParam();
  options.max_context_tokens = kContext;
  options.kv_cache_tokens = kContext;
  auto remote =
      RemoteModel::Load(EXPERTMESH_SOURCE_DIR "/tests/golden/qwen3_moe_bf16",
                        options, /*num_services=*/1);
  ASSERT_TRUE(remote.ok()) << remote.status();
  LocalModel& model = *(*remote)->model;
  router::TokenBatch batch;
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t position = first; position < last; ++position) {
      MakeDecode(position, &batch);
      model.transformer->Forward(batch, model.cache.get(), nullptr);
      ASSERT_TRUE(model.transformer->token_status()[0].ok());
    }
  };
  run(0, 128);
  // On a busy machine others' ticks and batches sent twice add to a run.
  int64_t fewest = std::numeric_limits<int64_t>::max();
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const int64_t before = NumAllocations();
    run(128, 128 + kSteps);
    fewest = std::min(fewest, NumAllocations() - before);
  }
  // One message for each layer.
  const int64_t num_messages = kSteps * model.config().num_layers;
  EXPECT_LE(fewest, num_messages * kSlicesPerMessage + kElsewhere);
}

INSTANTIATE_TEST_SUITE_P(WireTypes, StepAllocationsTest,
                         ::testing::Values(DType::kF32, DType::kInt8),
                         [](const auto& info) {
                           return std::string(DTypeName(info.param));
                         });

}  // namespace
}  // namespace expertmesh::testing
