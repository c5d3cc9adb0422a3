#include "router_service/engine/hot_experts.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_type.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

namespace expertmesh::router {
namespace {

prometheus::MetricFamily GaugeFamily(const char* name, const char* help) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = prometheus::MetricType::Gauge;
  return family;
}

void Add(std::vector<prometheus::ClientMetric::Label> labels, double value,
         prometheus::MetricFamily* family) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  family->metric.push_back(std::move(metric));
}

}  // namespace

void HotExperts::Show(std::vector<HotExpert>* experts) {
  const size_t shown = std::min(kHotExpertRanks, experts->size());
  std::partial_sort(experts->begin(), experts->begin() + shown, experts->end(),
                    [](const HotExpert& a, const HotExpert& b) {
                      return std::tuple(-a.load_ratio, a.layer, a.expert) <
                             std::tuple(-b.load_ratio, b.layer, b.expert);
                    });
  MutexLock lock(&mutex_);
  hottest_.assign(experts->begin(), experts->begin() + shown);
}

std::vector<prometheus::MetricFamily> HotExperts::Collect() const {
  prometheus::MetricFamily ranks = GaugeFamily(
      "expertmesh_router_hot_expert_load_ratio",
      "Rows of the hottest experts over their layer's mean in the last 30 s.");
  prometheus::MetricFamily slots =
      GaugeFamily("expertmesh_router_hot_slot_load_ratio",
                  "The same by which experts they are now.");
  MutexLock lock(&mutex_);
  for (size_t i = 0; i < kHotExpertRanks; ++i) {
    const double load = i < hottest_.size() ? hottest_[i].load_ratio : 0;
    Add({{"rank", std::to_string(i + 1)}}, load, &ranks);
  }
  for (const HotExpert& hot : hottest_) {
    Add({{"layer", std::to_string(hot.layer)},
         {"expert", std::to_string(hot.expert)}},
        hot.load_ratio, &slots);
  }
  return {std::move(ranks), std::move(slots)};
}

}  // namespace expertmesh::router
