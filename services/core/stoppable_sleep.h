#pragma once

// Sleeps that a stop ends.

#include <functional>
#include <stop_token>
#include <thread>

#include "absl/time/time.h"

namespace expertmesh {

// Blocks for `time`, or until a stop is requested of `stop`.
void SleepUnlessStopped(absl::Duration time, const std::stop_token& stop);

// A thread that calls `look` after each `interval`, until it is stopped.
std::jthread CallEvery(absl::Duration interval, std::function<void()> look);

}  // namespace expertmesh
