#include "expert_service/device/cuda_devices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace expertmesh::expert {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

CudaSurvey TwoDevices() {
  CudaSurvey survey;
  survey.built = true;
  survey.runtime_version = 13000;
  survey.driver_version = 13020;
  survey.devices = {{0, "Old", 7, 5, uint64_t{16} << 30, "", ""},
                    {1, "New", 9, 0, uint64_t{80} << 30, "", ""}};
  return survey;
}

std::string Refusal(const CudaSurvey& survey, int index = 0) {
  const absl::Status status = PickCudaDevice(survey, index).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), StartsWith("no CUDA device: "));
  return std::string(status.message());
}

TEST(CudaDevices, PicksByIndex) {
  const auto device = PickCudaDevice(TwoDevices(), 1);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->name, "New");
  EXPECT_EQ(ComputeCapability(*device), "9.0");
}

TEST(CudaDevices, SaysThatTheDeviceIsTooOld) {
  EXPECT_THAT(Refusal(TwoDevices()),
              HasSubstr("Old has compute capability 7.5"));
}

TEST(CudaDevices, SaysWhichIndexesThereAre) {
  EXPECT_THAT(Refusal(TwoDevices(), 2), HasSubstr("only 2 devices"));
  CudaSurvey none = TwoDevices();
  none.devices.clear();
  EXPECT_THAT(Refusal(none), HasSubstr("the NVIDIA driver has none"));
}

TEST(CudaDevices, SaysWhatIsWrongWithTheDriver) {
  CudaSurvey survey = TwoDevices();
  survey.driver_version = 12080;
  EXPECT_THAT(Refusal(survey, 1),
              HasSubstr("serves CUDA up to 12.8, and this binary needs 13.0"));
  survey.driver_version = 0;
  EXPECT_THAT(Refusal(survey, 1), HasSubstr("no NVIDIA driver found"));
}

// Runtimes of one major version run on every driver of it.
TEST(CudaDevices, TakesAnOlderDriverOfTheSameMajorVersion) {
  CudaSurvey survey = TwoDevices();
  survey.runtime_version = 13010;
  survey.driver_version = 13000;
  EXPECT_TRUE(PickCudaDevice(survey, 1).ok());
}

TEST(CudaDevices, PassesOnWhatTheRuntimeSays) {
  CudaSurvey survey = TwoDevices();
  survey.error = "system not yet initialized";
  EXPECT_THAT(Refusal(survey, 1), HasSubstr("system not yet initialized"));
}

TEST(CudaDevices, OneThatFailsHidesNoOther) {
  CudaSurvey survey = TwoDevices();
  survey.devices[0].error = "unspecified launch failure";
  EXPECT_THAT(Refusal(survey), HasSubstr("device 0: unspecified launch"));
  EXPECT_TRUE(PickCudaDevice(survey, 1).ok());
}

TEST(CudaDevices, SaysThatTheBinaryHasNoCuda) {
  EXPECT_THAT(Refusal({}), HasSubstr("built without CUDA"));
}

}  // namespace
}  // namespace expertmesh::expert
