#include "services/checkpoint/memory_plan.h"

#include <string>

#include <gtest/gtest.h>

#include "services/linalg/gemm.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using testing::CheckpointParts;
using testing::MakeCheckpoint;
using testing::TempFolder;
using testing::TinyConfig;

// The plan must foretell what packing takes.
TEST(MemoryPlanTest, PackedBytesAreThoseOfPackedMatrix) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const auto& [n, k] : {std::pair{1, 1}, {64, 64}, {65, 33}, {40, 7}}) {
      const std::string bytes(n * k * DTypeBytes(dtype), '\0');
      TensorView view;
      view.data = reinterpret_cast<const std::byte*>(bytes.data());
      view.dtype = dtype;
      view.shape = {n, k};
      const auto packed = PackedMatrix::Pack(view);
      ASSERT_TRUE(packed.ok()) << packed.status();
      EXPECT_EQ(PackedBytes(n, k, FormatOf(dtype)),
                static_cast<int64_t>(packed->size_bytes()));
    }
  }
}

absl::StatusOr<MemoryPlan> Plan(const CheckpointParts& parts,
                                const MemoryPlanOptions& options) {
  const TempFolder folder;
  parts.Write(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  if (!checkpoint.ok()) return checkpoint.status();
  return PlanMemory(**checkpoint, options);
}

absl::StatusOr<MemoryPlan> Plan(const std::string& model_type,
                                const MemoryPlanOptions& options) {
  return Plan(MakeCheckpoint(TinyConfig(model_type)), options);
}

// Mixtral of 2 layers, hidden 16, 4 heads of 4, 2 of them for keys, experts of
// width 24, 32 tokens; every matrix fits one panel of 64 outputs.
TEST(MemoryPlanTest, WorkedOutByHand) {
  const auto plan =
      Plan("mixtral", {.kv_format = KvFormat::kBF16, .num_expert_services = 3});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const int64_t panel_column = 64 * 4;
  EXPECT_EQ(plan->kv_bytes_per_token, 2 * 2 * 8 * 2);
  EXPECT_EQ(plan->expert_bytes, (16 + 16 + 24) * panel_column);
  // q, k, v, o and gate, and two norms a layer; final norm; table and head.
  EXPECT_EQ(plan->router_weight_bytes,
            2 * (5 * 16 * panel_column + 2 * 16 * 4) + 16 * 4 + 32 * 16 * 4 +
                16 * panel_column);
  ASSERT_EQ(plan->expert_services.size(), 3u);
  EXPECT_EQ(plan->expert_services[0].experts.size(), 3);
  EXPECT_EQ(plan->expert_services[2].experts.size(), 2);
  EXPECT_EQ(plan->expert_services[0].weight_bytes, 2 * 3 * plan->expert_bytes);
}

// And a scale of four bytes for each of 2 heads, for keys and values each.
TEST(MemoryPlanTest, KeysAndValuesInInt8) {
  const auto plan = Plan("mixtral", {.kv_format = KvFormat::kInt8});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kv_bytes_per_token, 2 * 2 * (8 + 2 * 4));
}

TEST(MemoryPlanTest, FormatsTakeWhatTheirBitsDo) {
  const int64_t f32 = PackedBytes(128, 64, WeightFormat::kF32);
  EXPECT_EQ(f32, 128 * 64 * 4);
  EXPECT_EQ(PackedBytes(128, 64, WeightFormat::kBF16), f32 / 2);
  EXPECT_EQ(PackedBytes(128, 64, WeightFormat::kF16), f32 / 2);
  // And a scale and an offset of four bytes for each output.
  EXPECT_EQ(PackedBytes(128, 64, WeightFormat::kInt8), f32 / 4 + 128 * 8);
  // And a step of one byte for each 32 weights.
  EXPECT_EQ(PackedBytes(128, 64, WeightFormat::kInt4),
            f32 / 8 + 128 * 64 / 32 + 128 * 8);
}

TEST(MemoryPlanTest, TheFormatIsThatOfExperts) {
  const auto f32 = Plan("qwen2_moe", {});
  const auto int4 = Plan("qwen2_moe", {.expert_format = WeightFormat::kInt4});
  ASSERT_TRUE(f32.ok() && int4.ok());
  EXPECT_NE(f32->expert_bytes, int4->expert_bytes);
  EXPECT_EQ(f32->router_weight_bytes, int4->router_weight_bytes);
}

// The router neither widens nor narrows what it loads.
TEST(MemoryPlanTest, TheRoutersWeightsKeepTheirOwnTypes) {
  const auto bytes = [](const CheckpointParts& parts,
                        const MemoryPlanOptions& options) {
    const auto plan = Plan(parts, options);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan.ok() ? plan->router_weight_bytes : 0;
  };
  json config = TinyConfig("mixtral");
  config["hidden_size"] = 64;  // no padding
  CheckpointParts f32 = MakeCheckpoint(config);
  const CheckpointParts bf16 = MakeCheckpoint(config, DType::kBF16);
  const MemoryPlanOptions wide = {.kv_format = KvFormat::kF32,
                                  .expert_format = WeightFormat::kF32};
  const MemoryPlanOptions narrow = {.kv_format = KvFormat::kBF16,
                                    .expert_format = WeightFormat::kBF16};
  EXPECT_EQ(bytes(f32, wide), bytes(f32, narrow));
  EXPECT_EQ(bytes(bf16, wide), bytes(bf16, narrow));
  // Norms are f32 in memory; all else is half as large.
  const int64_t norms = (2 * 2 + 1) * 64 * 4;
  EXPECT_EQ(bytes(f32, wide) - norms, 2 * (bytes(bf16, wide) - norms));

  const int64_t before = bytes(f32, wide);
  testing::StoredTensor& gate =
      f32.Tensor("model.layers.0.block_sparse_moe.gate.weight");
  gate.dtype = "BF16";
  gate.bytes.resize(gate.bytes.size() / 2);
  EXPECT_EQ(before - bytes(f32, wide), 64 * 64 * 2);
}

TEST(MemoryPlanTest, ATiedHeadIsPackedFromTheTable) {
  json config = TinyConfig("mixtral");
  const auto apart = Plan(MakeCheckpoint(config), {});
  config["tie_word_embeddings"] = true;
  const auto tied = Plan(MakeCheckpoint(config), {});
  ASSERT_TRUE(apart.ok() && tied.ok());
  EXPECT_EQ(apart->router_weight_bytes, tied->router_weight_bytes);
}

TEST(MemoryPlanTest, RefusesMoreServicesThanExperts) {
  EXPECT_EQ(Plan("olmoe", {.num_expert_services = 9}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertmesh
