#pragma once

// What benchmarks measure and sum up with.

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"

namespace expertmesh::testing {

// The upper one of two in the middle. Requires: not empty.
inline double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

inline double Seconds(absl::FunctionRef<void()> body) {
  const int64_t start = absl::GetCurrentTimeNanos();
  body();
  return static_cast<double>(absl::GetCurrentTimeNanos() - start) * 1e-9;
}

// Keeps all threads of this process on one CPU; threads and processes they
// start inherit it.
inline void PinProcess(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/self/task")) {
    sched_setaffinity(std::atoi(task.path().filename().c_str()), sizeof(set),
                      &set);
  }
}

}  // namespace expertmesh::testing
