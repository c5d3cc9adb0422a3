#pragma once

// The process_* metrics every Prometheus client library gives: CPU time,
// memory, open files, start time. Read from /proc at each scrape.

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

namespace expertmesh {

// Thread-safe.
class ProcessCollector final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace expertmesh
