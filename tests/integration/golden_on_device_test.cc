// Equality with the reference implementation, experts in services whose device
// is emulated.

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tests/support/golden_check.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

class GoldenOnDeviceTest : public ::testing::TestWithParam<const char*> {
 protected:
  GoldenOnDeviceTest() {
    setenv("EXPERTMESH_EXPERT_BINARY", "expertmesh-expert-emulated", 1);
  }
};

TEST_P(GoldenOnDeviceTest, EqualsTheReference) {
  const std::string directory =
      std::string(EXPERTMESH_SOURCE_DIR "/tests/golden/") + GetParam();
  auto remote = RemoteModel::Load(directory, LocalModelOptions(), 2);
  ASSERT_TRUE(remote.ok()) << remote.status();
  const GoldenFile golden(directory + "/golden.safetensors");
  ExpectEqualToGolden((*remote)->model.get(), golden, 0);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenOnDeviceTest,
                         ::testing::Values("mixtral", "qwen3_moe"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace expertmesh::testing
