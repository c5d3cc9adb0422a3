#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace expertmesh::router {

// How long an endpoint takes for a number of rows: a part for each row, which
// is what its device says to have computed for one, and a fixed part, which is
// whatever else batches took on average. Older observations count less and
// less. One thread at a time.
class LatencyModel {
 public:
  struct Observation {
    int64_t rows = 0;
    int64_t rows_ahead = 0;  // in flight there when it was sent, its own too
    absl::Duration taken;
    // Of the device; zero where it was not told: half of `taken`.
    absl::Duration computed;
  };
  void Observe(const Observation& observation);
  // From the next observation on, those before count no more.
  void Forget() { n_ = rows_ = rows_ahead_ = taken_ = computed_ = 0; }

  // Before the first observation: a guess.
  absl::Duration Predict(int64_t rows) const {
    return fixed() + per_row() * static_cast<double>(rows);
  }
  absl::Duration fixed() const { return absl::Seconds(fixed_); }
  absl::Duration per_row() const { return absl::Seconds(per_row_); }

  // Whether predictions rest on enough observations to be acted upon.
  bool is_settled() const { return num_observations_ >= 8; }

 private:
  int64_t num_observations_ = 0;
  // Weighted sums of observations, in seconds.
  double n_ = 0, rows_ = 0, rows_ahead_ = 0, taken_ = 0, computed_ = 0;
  double fixed_ = 1e-3;
  double per_row_ = 1e-5;
};

}  // namespace expertmesh::router
