#include "services/checkpoint/memory_plan.h"

#include <string>

#include <gtest/gtest.h>

#include "services/checkpoint/config_reader.h"
#include "services/checkpoint/families/families.h"
#include "services/linalg/gemm.h"
#include "tests/support/safetensors_writer.h"

namespace expertmesh {
namespace {

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
      EXPECT_EQ(PackedBytes(n, k, dtype),
                static_cast<int64_t>(packed->size_bytes()));
    }
  }
}

absl::StatusOr<MemoryPlan> Plan(const std::string& model_type,
                                const MemoryPlanOptions& options) {
  const nlohmann::json json = TinyConfig(model_type);
  ConfigReader reader("config.json", json);
  const ModelFamily* family = FindFamily(model_type);
  const auto config = family->ParseConfig(reader);
  EXPECT_TRUE(config.ok()) << config.status();
  return PlanMemory(*config, *family, options);
}

// Mixtral of 2 layers, hidden 16, 4 heads of 4, 2 of them for keys, experts of
// width 24, 32 tokens; every matrix fits one panel of 64 outputs.
TEST(MemoryPlanTest, WorkedOutByHand) {
  const auto plan =
      Plan("mixtral", {.kv_dtype = DType::kBF16, .num_expert_services = 3});
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

TEST(MemoryPlanTest, SixteenBitTypesHalveEvenWidths) {
  const auto f32 = Plan("qwen2_moe", {});
  const auto bf16 = Plan("qwen2_moe", {.expert_dtype = DType::kBF16});
  const auto f16 = Plan("qwen2_moe", {.expert_dtype = DType::kF16});
  ASSERT_TRUE(f32.ok() && bf16.ok() && f16.ok());
  EXPECT_EQ(f32->expert_bytes, 2 * bf16->expert_bytes);
  EXPECT_EQ(bf16->expert_bytes, f16->expert_bytes);
  EXPECT_EQ(f32->router_weight_bytes, bf16->router_weight_bytes);
}

TEST(MemoryPlanTest, RefusesMoreServicesThanExperts) {
  EXPECT_EQ(Plan("olmoe", {.num_expert_services = 9}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertmesh
