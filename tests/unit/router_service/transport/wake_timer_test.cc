#include "router_service/transport/wake_timer.h"

#include <gtest/gtest.h>

#include <vector>

#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh::router {
namespace {

// Counts sweeps; each asks for the next after `gap`.
struct Sweeps {
  Mutex mutex;
  CondVar changed;
  int count ABSL_GUARDED_BY(mutex) = 0;

  absl::Duration Sweep(absl::Duration now, absl::Duration gap) {
    MutexLock lock(&mutex);
    ++count;
    changed.NotifyAll();
    return now + gap;
  }
  bool Await(int n) {
    MutexLock lock(&mutex);
    return changed.WaitFor(lock, absl::Seconds(30), [&] { return count >= n; });
  }
};

TEST(WakeTimer, SleepsUntilWoken) {
  Sweeps sweeps;
  WakeTimer timer([&](absl::Duration now) {
    return sweeps.Sweep(now, absl::InfiniteDuration());
  });
  timer.WakeBy(absl::InfiniteDuration());
  timer.WakeBy(Clock::Real()->Now() + absl::Hours(10));
  const absl::Duration start = Clock::Real()->Now();
  timer.WakeBy(start + absl::Milliseconds(20));  // earlier than what is armed
  ASSERT_TRUE(sweeps.Await(1));
  EXPECT_GE(Clock::Real()->Now() - start, absl::Milliseconds(20));
}

TEST(WakeTimer, SweepsAgainWhenTheSweepAsks) {
  Sweeps sweeps;
  WakeTimer timer([&](absl::Duration now) {
    return sweeps.Sweep(now, absl::Milliseconds(1));
  });
  timer.WakeBy(absl::ZeroDuration());
  EXPECT_TRUE(sweeps.Await(5));
}

TEST(WakeTimer, EndsWhileAsleep) {
  WakeTimer timer([](absl::Duration) { return absl::InfiniteDuration(); });
}

}  // namespace
}  // namespace expertmesh::router
