#pragma once

// The expertmesh_expert_device_* metrics of a GPU, read at each scrape.

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <memory>
#include <utility>
#include <vector>

#include "expert_service/device/nvml.h"

namespace expertmesh::expert {

// Thread-safe.
class DeviceCollector final : public prometheus::Collectable {
 public:
  explicit DeviceCollector(std::unique_ptr<const Nvml> nvml)
      : nvml_(std::move(nvml)) {}

  // Without those that the device does not tell.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::unique_ptr<const Nvml> nvml_;
};

}  // namespace expertmesh::expert
