#include "expert_service/device/device_metrics.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_type.h>

namespace expertmesh::expert {

std::vector<prometheus::MetricFamily> DeviceCollector::Collect() const {
  const Nvml::Reading reading = nvml_->Read();
  std::vector<prometheus::MetricFamily> families;
  const auto add = [&families](const char* name, const char* help,
                               auto optional_value) {
    if (!optional_value.has_value()) return;
    prometheus::ClientMetric metric;
    metric.gauge.value = static_cast<double>(*optional_value);
    families.push_back({name, help, prometheus::MetricType::Gauge, {metric}});
  };
  add("expertmesh_expert_device_memory_used_bytes",
      "Memory of the GPU in use, by all processes, in bytes.",
      reading.memory_used_bytes);
  add("expertmesh_expert_device_memory_total_bytes",
      "Memory of the GPU, in bytes.", reading.memory_total_bytes);
  add("expertmesh_expert_device_utilization_ratio",
      "Part of the time in which the GPU computed, 0 to 1.",
      reading.utilization);
  add("expertmesh_expert_device_temperature_celsius",
      "Temperature of the GPU, in degrees Celsius.",
      reading.temperature_celsius);
  return families;
}

}  // namespace expertmesh::expert
