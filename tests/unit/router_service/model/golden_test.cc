// Equality with the reference implementation, experts in this process.

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/support/golden_check.h"

namespace expertmesh::testing {
namespace {

struct Case {
  std::string folder;
  int num_endpoints;
};

class GoldenTest : public ::testing::TestWithParam<Case> {};

TEST_P(GoldenTest, ExpertsInOneProcess) {
  const std::string directory =
      EXPERTMESH_SOURCE_DIR "/tests/golden/" + GetParam().folder;
  LocalModelOptions options;
  options.num_endpoints = GetParam().num_endpoints;
  auto model = LocalModel::Load(directory, options);
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectEqualToGolden(model->get(), directory);
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

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& info) {
                           return absl::StrCat(info.param.folder, "_",
                                               info.param.num_endpoints);
                         });

}  // namespace
}  // namespace expertmesh::testing
