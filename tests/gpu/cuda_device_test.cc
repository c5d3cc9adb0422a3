// What is said of a device must be true of it.

#include <gtest/gtest.h>

#include "expert_service/device/cuda_devices.h"
#include "expert_service/device/nvml.h"

namespace expertmesh::expert {
namespace {

TEST(CudaDevice, TheFirstOneRunsAKernel) {
  const auto device = FindCudaDevice(0);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_FALSE(device->name.empty());
  EXPECT_GE(device->compute_major, 8);
}

TEST(CudaDevice, AnIndexBeyondTheLastIsRefused) {
  const auto count = static_cast<int>(SurveyCudaDevices().devices.size());
  EXPECT_FALSE(FindCudaDevice(count).ok());
}

// The two libraries number devices in different orders.
TEST(CudaDevice, NvmlTellsOfTheSameDevice) {
  const CudaSurvey survey = SurveyCudaDevices();
  ASSERT_FALSE(survey.devices.empty());
  for (const CudaDevice& device : survey.devices) {
    const auto nvml = Nvml::Open(device.pci_bus_id);
    ASSERT_TRUE(nvml.ok()) << nvml.status();
    const Nvml::Reading reading = (*nvml)->Read();
    ASSERT_TRUE(reading.memory_total_bytes.has_value());
    // CUDA leaves out what the driver has taken for itself.
    EXPECT_NEAR(static_cast<double>(*reading.memory_total_bytes),
                static_cast<double>(device.memory_bytes),
                0.05 * static_cast<double>(device.memory_bytes));
  }
}

}  // namespace
}  // namespace expertmesh::expert
