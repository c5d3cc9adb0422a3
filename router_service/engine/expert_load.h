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

  // `counts_totals`: for Totals, which else are none.
  ExpertLoad(int64_t num_layers, int64_t num_experts,
             bool counts_totals = false);

  // Adds a step's rows [num_layers, num_experts] at time `now`.
  void Add(const std::vector<uint32_t>& rows, absl::Duration now);

  // Adds tokens that were generated at time `now`.
  void AddTokens(int64_t count, absl::Duration now);

  // Rows by slot within the window [num_layers, num_experts].
  std::vector<uint64_t> Window(absl::Duration now) const;
  // The same into `total`, which is reused.
  void Window(absl::Duration now, std::vector<uint64_t>* total) const;

  // Rows by slot since the start [num_layers, num_experts].
  std::vector<uint64_t> Totals() const;

  // Generated tokens within the window.
  int64_t WindowTokens(absl::Duration now) const;

  // The part of the window that has passed since the first Add.
  absl::Duration Covered(absl::Duration now) const;

 private:
  static int64_t Second(absl::Duration now) {
    return absl::ToInt64Seconds(now);
  }

  struct Bucket {
    int64_t second = -1;  // which one it holds; -1: none yet
    std::vector<uint32_t> rows;
    int64_t tokens = 0;
  };
  // The bucket of `second`, emptied where it held an older one.
  Bucket& BucketOf(int64_t second) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static bool IsWithin(const Bucket& bucket, int64_t second) {
    return bucket.second >= 0 && bucket.second + kWindowSeconds > second;
  }

  const int64_t num_slots_;
  mutable Mutex mutex_;
  // That of second s is buckets_[s % kWindowSeconds].
  std::vector<Bucket> buckets_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> totals_ ABSL_GUARDED_BY(mutex_);  // empty: not counted
  int64_t first_second_ ABSL_GUARDED_BY(mutex_) = -1;
};

// Balancedness of one layer: mean ÷ max of its rows; 1 where it had none.
double Balancedness(const uint64_t* rows, int64_t num_experts);

}  // namespace expertmesh::router
