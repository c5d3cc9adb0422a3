#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace expertmesh::router {

// How long an endpoint takes for a number of rows: a fixed part and a part for
// each row, fitted to what it took lately by least squares, older observations
// counting less and less. One thread at a time.
class LatencyModel {
 public:
  // `rows` in flight there, this batch's included, when it was sent.
  void Observe(int64_t rows, absl::Duration taken);

  // Before the first observation: a guess.
  absl::Duration Predict(int64_t rows) const {
    return absl::Seconds(fixed_ + per_row_ * static_cast<double>(rows));
  }

  // Whether predictions rest on enough observations to be acted upon.
  bool is_settled() const { return num_observations_ >= 8; }

 private:
  int64_t num_observations_ = 0;
  // Weighted sums of observations (x: rows, y: seconds).
  double n_ = 0, x_ = 0, y_ = 0, xx_ = 0, xy_ = 0;
  double fixed_ = 1e-3;
  double per_row_ = 1e-5;
};

}  // namespace expertmesh::router
