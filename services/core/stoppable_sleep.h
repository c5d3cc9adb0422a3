#pragma once

// A sleep that a stop ends.

#include <stop_token>

#include "absl/time/time.h"

namespace expertmesh {

// Blocks for `time`, or until a stop is requested of `stop`.
void SleepUnlessStopped(absl::Duration time, const std::stop_token& stop);

}  // namespace expertmesh
