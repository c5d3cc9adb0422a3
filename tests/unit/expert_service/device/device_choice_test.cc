#include "expert_service/device/device_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace expertmesh::expert {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Device 0 is there.
absl::StatusOr<CudaDevice> FindFirst(int index) {
  if (index == 0) return CudaDevice{0, "G", 9, 0, 1000, "", ""};
  return absl::FailedPreconditionError("no CUDA device: only one");
}

absl::StatusOr<CudaDevice> FindNone(int) {
  return absl::FailedPreconditionError("no CUDA device: none at all");
}

absl::StatusOr<Device> Choose(
    const std::string& text,
    absl::FunctionRef<absl::StatusOr<CudaDevice>(int)> find) {
  return ChooseDevice(*ParseDeviceWish(text), find);
}

TEST(DeviceChoice, ReadsWishes) {
  EXPECT_EQ(ParseDeviceWish("auto")->kind, DeviceWish::Kind::kAuto);
  EXPECT_EQ(ParseDeviceWish("cpu")->kind, DeviceWish::Kind::kCpu);
  EXPECT_EQ(ParseDeviceWish("cuda")->kind, DeviceWish::Kind::kCuda);
  EXPECT_EQ(ParseDeviceWish("cuda")->cuda_index, 0);
  EXPECT_EQ(ParseDeviceWish("cuda:12")->cuda_index, 12);
  for (const char* text : {"", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"}) {
    EXPECT_THAT(std::string(ParseDeviceWish(text).status().message()),
                HasSubstr("not one of auto, cpu, cuda, cuda:N"))
        << text;
  }
}

TEST(DeviceChoice, AutoTakesTheDeviceThatIsThere) {
  EXPECT_EQ(Choose("auto", FindFirst)->cuda->name, "G");
  const auto none = Choose("auto", FindNone);
  EXPECT_FALSE(none->cuda.has_value());
  EXPECT_EQ(none->why_cpu, "no CUDA device: none at all");
}

TEST(DeviceChoice, TheCpuIsTakenUnasked) {
  const auto device = Choose("cpu", [](int) -> absl::StatusOr<CudaDevice> {
    ADD_FAILURE() << "looked for a device";
    return CudaDevice();
  });
  EXPECT_FALSE(device->cuda.has_value());
  EXPECT_EQ(device->why_cpu, "");
}

TEST(DeviceChoice, WhatIsAskedForMustBeThere) {
  EXPECT_EQ(Choose("cuda", FindFirst)->cuda->index, 0);
  EXPECT_EQ(Choose("cuda:1", FindFirst).status().message(),
            "no CUDA device: only one");
  EXPECT_FALSE(Choose("cuda", FindNone).ok());
}

TEST(DeviceChoice, NamesTheOrderOfSums) {
  const Device cpu;
  const Device hopper = {CudaDevice{.compute_major = 9, .compute_minor = 0},
                         ""};
  const Device ampere = {CudaDevice{.compute_major = 8, .compute_minor = 0},
                         ""};
  EXPECT_EQ(DeviceKind(cpu), "cpu");
  EXPECT_EQ(DeviceKind(hopper), "cuda");
  EXPECT_THAT(NumericsId(cpu, WeightFormat::kBF16), StartsWith("cpu-"));
  EXPECT_EQ(NumericsId(hopper, WeightFormat::kBF16), "cuda-sm90-mma-bf16-v1");
  EXPECT_EQ(NumericsId(ampere, WeightFormat::kInt4), "cuda-sm80-mma-int4-v1");
  EXPECT_EQ(NumericsId(ampere, WeightFormat::kF32), "cuda-sm80-lanes-f32-v1");
  EXPECT_EQ(NumericsId(hopper, WeightFormat::kBF16, Numerics::kFast),
            "cuda-sm90-cublas-bf16-v1");
  // Where there is no faster way.
  EXPECT_EQ(NumericsId(hopper, WeightFormat::kInt8, Numerics::kFast),
            NumericsId(hopper, WeightFormat::kInt8));
  EXPECT_EQ(NumericsId(cpu, WeightFormat::kBF16, Numerics::kFast),
            NumericsId(cpu, WeightFormat::kBF16));
}

}  // namespace
}  // namespace expertmesh::expert
