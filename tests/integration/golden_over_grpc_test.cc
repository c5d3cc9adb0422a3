// Equality with the reference implementation, experts in expert services: one
// process, and four. And equality to the bit with experts in this process.

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/checkpoint_variant.h"
#include "tests/support/golden_check.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

struct Case {
  std::string folder;
  int num_services;
};

std::string Folder(const std::string& name) {
  return EXPERTMESH_SOURCE_DIR "/tests/golden/" + name;
}

class GoldenOverGrpcTest : public ::testing::TestWithParam<Case> {};

TEST_P(GoldenOverGrpcTest, EqualsTheReference) {
  const std::string directory = Folder(GetParam().folder);
  auto remote = RemoteModel::Load(directory, LocalModelOptions(),
                                  GetParam().num_services);
  ASSERT_TRUE(remote.ok()) << remote.status();
  ExpectEqualToGolden((*remote)->model.get(), directory);
}

TEST_P(GoldenOverGrpcTest, EqualsOneProcessToTheBit) {
  const std::string directory = Folder(GetParam().folder);
  LocalModelOptions options;
  options.router_dtype = DType::kBF16;
  options.wire_dtype = DType::kBF16;
  auto local = LocalModel::Load(directory, options);
  ASSERT_TRUE(local.ok()) << local.status();
  auto remote = RemoteModel::Load(directory, options, GetParam().num_services);
  ASSERT_TRUE(remote.ok()) << remote.status();
  const GoldenFile golden(directory + "/golden.safetensors");
  const std::vector<int32_t>& prompt = golden.Ints("prompt_2");
  const auto expected = SingleSequence(local->get()).Append(prompt, 512);
  const auto actual =
      SingleSequence((*remote)->model.get()).Append(prompt, 512);
  ASSERT_EQ(actual.size(), expected.size());
  EXPECT_EQ(std::memcmp(actual.data(), expected.data(),
                        expected.size() * sizeof(float)),
            0);
}

// Combine groups of a size, with five experts for each token.
struct GroupCase {
  std::string folder;
  DType dtype;
  DType wire_dtype;
  int64_t group_size;
};

class GroupsOverGrpcTest : public ::testing::TestWithParam<GroupCase> {};

// Experts in this process, none of which adds rows, against services that do.
TEST_P(GroupsOverGrpcTest, WhoeverAddsRowsAndWhereverTheyAre) {
  const auto checkpoint =
      CheckpointVariant::WithTopK(Folder(GetParam().folder), 5);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  LocalModelOptions options;
  options.router_dtype = GetParam().dtype;
  options.wire_dtype = GetParam().wire_dtype;
  options.combine_group_size = GetParam().group_size;
  options.adds_rows = false;
  auto local = LocalModel::Load(checkpoint->directory(), options);
  ASSERT_TRUE(local.ok()) << local.status();
  const GoldenFile golden(Folder(GetParam().folder) + "/golden.safetensors");
  const std::vector<int32_t>& prompt = golden.Ints("prompt_2");
  const auto expected = SingleSequence(local->get()).Append(prompt, 512);
  for (const int num_services : {1, 2, 4}) {
    for (const bool shared_memory : {true, false}) {
      auto remote = RemoteModel::Load(checkpoint->directory(), options,
                                      num_services, shared_memory);
      ASSERT_TRUE(remote.ok()) << remote.status();
      for (const int64_t chunk : {512, 7}) {
        const auto actual =
            SingleSequence((*remote)->model.get()).Append(prompt, chunk);
        ASSERT_EQ(actual.size(), expected.size());
        EXPECT_EQ(std::memcmp(actual.data(), expected.data(),
                              expected.size() * sizeof(float)),
                  0)
            << num_services << " services, chunks of " << chunk;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, GroupsOverGrpcTest,
    ::testing::Values(
        GroupCase{"qwen3_moe", DType::kF32, DType::kF32, 1},
        GroupCase{"qwen3_moe", DType::kF32, DType::kF32, 4},
        GroupCase{"qwen3_moe", DType::kF32, DType::kF32, 8},
        GroupCase{"qwen3_moe_bf16", DType::kBF16, DType::kBF16, 1},
        GroupCase{"qwen3_moe_bf16", DType::kBF16, DType::kBF16, 4},
        GroupCase{"qwen3_moe_bf16", DType::kBF16, DType::kBF16, 8},
        GroupCase{"qwen3_moe", DType::kF32, DType::kInt8, 1},
        GroupCase{"qwen3_moe_bf16", DType::kBF16, DType::kInt8, 1},
        GroupCase{"qwen3_moe_bf16", DType::kBF16, DType::kInt8, 8}),
    [](const auto& info) {
      return absl::StrCat(info.param.folder, "_wire_",
                          DTypeName(info.param.wire_dtype), "_",
                          info.param.group_size);
    });

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* folder :
       {"mixtral", "mixtral_sharded", "mixtral_window", "qwen2_moe",
        "qwen3_moe", "qwen3_moe_bf16", "olmoe"}) {
    cases.push_back({folder, 1});
    cases.push_back({folder, 4});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenOverGrpcTest,
                         ::testing::ValuesIn(AllCases()), [](const auto& info) {
                           return absl::StrCat(info.param.folder, "_",
                                               info.param.num_services);
                         });

}  // namespace
}  // namespace expertmesh::testing
