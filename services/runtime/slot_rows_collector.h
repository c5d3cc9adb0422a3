#pragma once

// A counter for each expert of each layer, read where it is counted at each
// scrape: whoever counts rows pays for no metric.

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "services/core/mutex.h"

namespace expertmesh {

// Thread-safe.
class SlotRowsCollector final : public prometheus::Collectable {
 public:
  // Rows of each slot since the start, [num_layers, num_experts].
  using Source = std::function<std::vector<uint64_t>()>;

  // `layers`: those that have experts.
  SlotRowsCollector(std::string name, std::string help,
                    std::vector<int64_t> layers, int64_t num_experts);

  // Null, as at first: zeros. Does not return while the former one is asked.
  void SetSource(Source source);

  int64_t num_series() const {
    return static_cast<int64_t>(layers_.size()) * num_experts_;
  }
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::string name_;
  const std::string help_;
  const std::vector<int64_t> layers_;
  const int64_t num_experts_;
  mutable Mutex mutex_;
  Source source_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh
