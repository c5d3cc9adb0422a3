// Equality with the reference implementation, experts in expert services: one
// process, and four. And equality to the bit with experts in this process.

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
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
