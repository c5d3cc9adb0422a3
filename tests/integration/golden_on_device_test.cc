// Equality with the reference implementation, experts in services on a CUDA
// device: an emulated one in ctest, a real one in a bundle (tests/gpu).

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "tests/support/golden_check.h"
#include "tests/support/remote_model.h"

namespace expertmesh::testing {
namespace {

// The folder of the goldens: EXPERTMESH_GOLDENS in the environment says where
// they are on a machine that has no source tree.
std::string Goldens() {
  const char* const elsewhere = std::getenv("EXPERTMESH_GOLDENS");
  return elsewhere != nullptr ? elsewhere
                              : EXPERTMESH_SOURCE_DIR "/tests/golden";
}

class GoldenOnDeviceTest : public ::testing::TestWithParam<const char*> {
 protected:
  GoldenOnDeviceTest() {
    setenv("EXPERTMESH_EXPERT_BINARY", EXPERTMESH_DEVICE_EXPERT, 0);
  }
};

TEST_P(GoldenOnDeviceTest, EqualsTheReference) {
  const std::string directory = Goldens() + "/" + GetParam();
  // Not "auto", which would pass on the CPU.
  auto remote = RemoteModel::Load(directory, LocalModelOptions(), 2, true,
                                  {"--device=cuda"});
  ASSERT_TRUE(remote.ok()) << remote.status();
  ExpectEqualToGolden((*remote)->model.get(), directory);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenOnDeviceTest,
                         ::testing::Values("mixtral", "olmoe", "qwen2_moe",
                                           "qwen3_moe"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace expertmesh::testing
