#include "expert_service/device/device_metrics.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "expert_service/device/nvml.h"

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr char kWhole[] = "0000:65:00.0";
constexpr char kPart[] = "0000:66:00.0";

std::map<std::string, double> Collect(const std::string& pci_bus_id) {
  auto nvml = Nvml::Open(pci_bus_id, FAKE_NVML);
  EXPECT_TRUE(nvml.ok()) << nvml.status();
  if (!nvml.ok()) return {};
  const DeviceCollector collector(*std::move(nvml));
  std::map<std::string, double> values;
  for (const prometheus::MetricFamily& family : collector.Collect()) {
    EXPECT_EQ(family.metric.size(), 1u);
    values[family.name] = family.metric.front().gauge.value;
  }
  return values;
}

TEST(DeviceMetrics, NumbersOfTheLibraryArrive) {
  EXPECT_THAT(
      Collect(kWhole),
      ElementsAre(Pair("expertmesh_expert_device_memory_total_bytes", 85'000),
                  Pair("expertmesh_expert_device_memory_used_bytes", 1'000),
                  Pair("expertmesh_expert_device_temperature_celsius", 41),
                  Pair("expertmesh_expert_device_utilization_ratio", 0.37)));
}

TEST(DeviceMetrics, WhatTheDeviceDoesNotTellIsLeftOut) {
  EXPECT_THAT(
      Collect(kPart),
      ElementsAre(Pair("expertmesh_expert_device_memory_total_bytes", 10'000),
                  Pair("expertmesh_expert_device_memory_used_bytes", 2'000)));
}

TEST(Nvml, StopsTheLibraryThatItStarted) {
  void* library = dlopen(FAKE_NVML, RTLD_NOW);
  ASSERT_NE(library, nullptr);
  const auto started =
      reinterpret_cast<int (*)()>(dlsym(library, "FakeNvmlStarted"));
  {
    const auto nvml = Nvml::Open(kWhole, FAKE_NVML);
    EXPECT_EQ(started(), 1);
    EXPECT_FALSE(Nvml::Open("0000:01:00.0", FAKE_NVML).ok());
    EXPECT_EQ(started(), 1);
  }
  EXPECT_EQ(started(), 0);
  dlclose(library);
}

TEST(Nvml, SaysWhatIsMissing) {
  const auto message = [](const std::string& id, const std::string& library) {
    const absl::Status status = Nvml::Open(id, library).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    return std::string(status.message());
  };
  EXPECT_EQ(message(kWhole, "libnone.so.1"), "libnone.so.1: cannot be loaded");
  EXPECT_THAT(message(kWhole, "libm.so.6"), HasSubstr("lacks a function"));
  EXPECT_THAT(message("0000:01:00.0", FAKE_NVML),
              HasSubstr("does not know device 0000:01:00.0"));
}

}  // namespace
}  // namespace expertmesh::expert
