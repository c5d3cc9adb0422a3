#include "services/runtime/slot_rows_collector.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_type.h>

namespace expertmesh {

SlotRowsCollector::SlotRowsCollector(std::string name, std::string help,
                                     std::vector<int64_t> layers,
                                     int64_t num_experts)
    : name_(std::move(name)),
      help_(std::move(help)),
      layers_(std::move(layers)),
      num_experts_(num_experts) {}

void SlotRowsCollector::SetSource(Source source) {
  MutexLock lock(&mutex_);
  source_ = std::move(source);
}

std::vector<prometheus::MetricFamily> SlotRowsCollector::Collect() const {
  std::vector<uint64_t> rows;
  {
    MutexLock lock(&mutex_);
    if (source_) rows = source_();
  }
  prometheus::MetricFamily family;
  family.name = name_;
  family.help = help_;
  family.type = prometheus::MetricType::Counter;
  family.metric.reserve(num_series());
  for (const int64_t layer : layers_) {
    for (int64_t expert = 0; expert < num_experts_; ++expert) {
      const auto slot = static_cast<size_t>(layer * num_experts_ + expert);
      prometheus::ClientMetric metric;
      metric.label = {{"layer", std::to_string(layer)},
                      {"expert", std::to_string(expert)}};
      metric.counter.value =
          slot < rows.size() ? static_cast<double>(rows[slot]) : 0;
      family.metric.push_back(std::move(metric));
    }
  }
  return {std::move(family)};
}

}  // namespace expertmesh
