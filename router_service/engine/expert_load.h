#pragma once

// How much work each expert gets, over a sliding window.

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Rows by slot in buckets of one second. Thread-safe.
class ExpertLoad {
 public:
  static constexpr int kWindowSeconds = 30;

  ExpertLoad(int64_t num_layers, int64_t num_experts);

  // Adds a step's rows [num_layers, num_experts] at time `now`. Returns true
  // when this began a new bucket, so about once a second.
  bool Add(const std::vector<uint32_t>& rows, absl::Duration now);

  // Rows by slot within the window [num_layers, num_experts].
  std::vector<uint64_t> Window(absl::Duration now) const;

  // The part of the window that has passed since the first Add.
  absl::Duration Covered(absl::Duration now) const;

 private:
  static int64_t Second(absl::Duration now) {
    return absl::ToInt64Seconds(now);
  }

  const int64_t num_slots_;
  mutable Mutex mutex_;
  // Bucket of second s is buckets_[s % kWindowSeconds]; bucket_second_ tells
  // which second it holds.
  std::vector<std::vector<uint32_t>> buckets_ ABSL_GUARDED_BY(mutex_);
  std::vector<int64_t> bucket_second_ ABSL_GUARDED_BY(mutex_);
  int64_t first_second_ ABSL_GUARDED_BY(mutex_) = -1;
};

// Balancedness of one layer: mean ÷ max of its rows; 1 where it had none.
double Balancedness(const uint64_t* rows, int64_t num_experts);

}  // namespace expertmesh::router
