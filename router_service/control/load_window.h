#pragma once

// Demand of the whole mesh by slot, over a sliding window.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "router_service/control/placement_problem.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

struct LoadWindowOptions {
  int64_t num_layers = 0;
  int64_t num_experts = 0;
  absl::Duration window = absl::Seconds(30);
  int num_buckets = 30;  // the window slides in steps of window ÷ num_buckets
};

// What a service counted: rows of a slot since it started, over all routers.
struct SlotCounter {
  SlotId slot;
  uint64_t rows = 0;
};

// The same of a whole service.
struct WorkCounters {
  uint64_t busy_us = 0;  // microseconds its device computed
  uint64_t runs = 0;     // experts it computed, each for all rows at hand
};

// What a service did.
struct HostWork {
  uint64_t rows = 0;
  uint64_t runs = 0;
  absl::Duration busy;

  bool operator==(const HostWork&) const = default;
};

// Turns the counters that services report from time to time into rows within
// the window. Rows belong to the time at which they were reported. Thread-safe.
class LoadWindow {
 public:
  // `clock` must outlive this.
  LoadWindow(const LoadWindowOptions& options, const Clock* clock);

  using Work = std::map<std::string, HostWork>;  // by endpoint

  // Takes a report. The first one of an endpoint only sets its counters, for
  // nobody knows how old they are. A counter that went down is that of a
  // restarted service and counts from 0; a slot that is not named keeps its
  // counter. Slots outside the model are ignored.
  void Observe(absl::string_view endpoint,
               absl::Span<const SlotCounter> counters,
               const WorkCounters& work = {});

  // Drops an endpoint that is gone: its counters, and its total. Its rows stay
  // in the window, for they were demand.
  void Forget(absl::string_view endpoint);

  // Rows within the window [num_layers, num_experts], as PlacementProblem::rows
  // has them.
  std::vector<double> Rows() const;

  // What each endpoint did within the window.
  Work EndpointWork() const;

  // The part of the window for which there are reports: divide by this to get
  // rows per second. 0 before the second report of any endpoint.
  absl::Duration Covered() const;

 private:
  struct Endpoint {
    std::vector<uint64_t> counters;  // [num_slots] as last reported
    WorkCounters work;               // likewise
    std::vector<HostWork> done;      // [num_buckets]
  };

  // Number of the bucket that `now` falls into, counted from the clock's start.
  int64_t BucketNumber() const;
  // Empties what left the window.
  void Slide() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const LoadWindowOptions options_;
  const absl::Duration bucket_;
  const Clock* const clock_;

  mutable Mutex mutex_;
  // Bucket of number n is buckets_[n % num_buckets]; sums are kept of them all.
  // Mutable: reading slides the window.
  mutable std::vector<std::vector<uint64_t>> buckets_ ABSL_GUARDED_BY(mutex_);
  mutable std::vector<uint64_t> total_ ABSL_GUARDED_BY(mutex_);
  mutable std::map<std::string, Endpoint, std::less<>> endpoints_
      ABSL_GUARDED_BY(mutex_);
  mutable int64_t newest_bucket_ ABSL_GUARDED_BY(mutex_);
  // When the first report came: what followed it is covered.
  absl::Duration first_report_ ABSL_GUARDED_BY(mutex_) =
      absl::InfiniteDuration();
};

}  // namespace expertmesh::router
