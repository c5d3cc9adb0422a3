#pragma once

// The hottest experts, as a scrape of /metrics shows them.

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// How many are shown.
inline constexpr size_t kHotExpertRanks = 8;

struct HotExpert {
  int64_t layer = 0;
  int64_t expert = 0;
  double load_ratio = 0;  // its rows over the mean of its layer's experts
};

// A series for each rank, and one with layer and expert for each that has a
// rank now: which they are changes, their number does not. Thread-safe.
class HotExperts final : public prometheus::Collectable {
 public:
  // Replaces what was shown: in any order, any number.
  void Show(std::vector<HotExpert>* experts);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  mutable Mutex mutex_;
  std::vector<HotExpert> hottest_ ABSL_GUARDED_BY(mutex_);  // by rank
};

}  // namespace expertmesh::router
