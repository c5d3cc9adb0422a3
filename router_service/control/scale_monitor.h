#pragma once

// What each pool needs now, from what its services report.

#include <prometheus/gauge.h>

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "router_service/control/scale_signal.h"
#include "router_service/transport/endpoint_info.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Any may be absent.
struct PoolScaleMetrics {
  prometheus::Gauge* demand_rows_per_second = nullptr;
  prometheus::Gauge* utilization_ratio = nullptr;
  prometheus::Gauge* desired_replicas = nullptr;
  prometheus::Gauge* replicas = nullptr;
};

// A pool as its operator bounds it.
struct ScalePool {
  std::string name;
  int min_replicas = 1;
  int max_replicas = 1;
  PoolScaleMetrics metrics;
};

struct ScaleMonitorOptions {
  ScaleOptions signal;
  absl::Duration window = absl::Seconds(30);  // that rates are means over
};

struct PoolScale {
  std::string pool;
  ScaleRecommendation recommendation;
};

// Turns the counters of services into rates by pool, and those into
// recommendations.
//
// Demand is what services were asked for: rows served, and rows by which their
// queues grew. Rows that a router's capacity turned away are asked again, there
// or elsewhere, unless its policy drops them; so demand is before capacity. A
// service that was not in use, or started anew, is measured from when it is
// back. One that drains is no replica any more, but its work is demand. One
// that is not heard of, while its address is the pool's, is a replica out of
// sight; one that is refused or leaves is none.
// Thread-safe.
class ScaleMonitor {
 public:
  // `clock` must outlive this. Until the first Observe, pools have nothing and
  // need what they may not have less of.
  ScaleMonitor(const ScaleMonitorOptions& options, std::vector<ScalePool> pools,
               const Clock* clock);

  // Takes what is known of all services now. Those not named are gone; pools
  // other than this one's are ignored. To be called several times a window.
  void Observe(absl::Span<const EndpointInfo> endpoints);

  // As of the last Observe, in the order given.
  std::vector<PoolScale> Pools() const;

 private:
  // Of one service at a time, since its start.
  struct Sample {
    absl::Duration time;
    uint64_t served_rows;
    uint64_t asked_rows;
    uint64_t busy_us;
  };
  // Oldest first: those within the window and one before it.
  using Samples = std::deque<Sample>;

  void Measure(absl::Span<const EndpointInfo> endpoints, absl::Duration now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Adds an endpoint to what is observed of its pool.
  void Count(const EndpointInfo& endpoint, PoolObservation* pool) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Recommend(const ScalePool& pool, PoolObservation observation,
                 PoolScale* out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ScaleMonitorOptions options_;
  const std::vector<ScalePool> pools_;
  const Clock* const clock_;

  mutable Mutex mutex_;
  ScaleSignal signal_ ABSL_GUARDED_BY(mutex_);
  std::map<int, Samples> samples_ ABSL_GUARDED_BY(mutex_);  // by index
  std::vector<PoolScale> scales_ ABSL_GUARDED_BY(mutex_);   // [pools_]
};

}  // namespace expertmesh::router
