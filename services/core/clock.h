#pragma once

// Time as an injectable dependency, so that tests own it.

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace expertmesh {

// Monotonic time. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Time since an arbitrary, fixed start.
  virtual absl::Duration Now() const = 0;

  // The machine's steady clock; lives as long as the process.
  static const Clock* Real();
};

}  // namespace expertmesh
