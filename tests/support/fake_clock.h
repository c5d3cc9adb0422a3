#pragma once

// A clock that stands still until a test moves it.

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "services/core/clock.h"

namespace expertmesh {

// Thread-safe.
class FakeClock final : public Clock {
 public:
  absl::Duration Now() const override {
    return absl::Nanoseconds(nanoseconds_.load());
  }
  void Advance(absl::Duration duration) {
    nanoseconds_.fetch_add(absl::ToInt64Nanoseconds(duration));
  }

 private:
  // Not zero: code that takes the start for "never" should be found out.
  std::atomic<int64_t> nanoseconds_{1'000'000'000};
};

}  // namespace expertmesh
