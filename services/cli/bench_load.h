#pragma once

// When the requests of a benchmark are sent.

#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace expertmesh {

// One of concurrency and request_rate is set.
struct LoadLevel {
  // Closed loop: so many requests at a time; where one ends, the next begins.
  std::optional<uint32_t> concurrency = std::nullopt;
  // Open loop: so many a second, at random times (a Poisson process), however
  // long answers take; infinity: all at once.
  std::optional<double> request_rate = std::nullopt;

  // It ends by whichever comes first; requests under way are waited for. One of
  // them must be set, with an infinite rate max_requests.
  std::optional<uint64_t> max_requests = std::nullopt;
  std::optional<absl::Duration> duration = std::nullopt;

  // "concurrency 8", "2.5 requests/s", "all requests at once".
  std::string Name() const;
};

// The schedule of one level. Times count from its start. One thread.
class LoadSchedule {
 public:
  LoadSchedule(const LoadLevel& level, uint64_t seed);

  // When the next request is planned. Nothing: not before one that runs ends,
  // or never.
  std::optional<absl::Duration> Next() const;
  // The next request was sent.
  void Sent();
  // A request has ended. After a failure a closed loop pauses for kPause, so
  // that a server that is gone is not asked thousands of times a second.
  void Ended(absl::Duration now, bool ok);

  static constexpr absl::Duration kPause = absl::Milliseconds(100);

 private:
  void PlanArrival();

  const LoadLevel level_;
  std::mt19937_64 random_;
  uint64_t sent_ = 0;
  absl::Duration arrival_;  // the last one planned
  std::priority_queue<absl::Duration, std::vector<absl::Duration>,
                      std::greater<>>
      planned_;
};

}  // namespace expertmesh
