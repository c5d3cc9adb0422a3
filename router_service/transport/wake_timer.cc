#include "router_service/transport/wake_timer.h"

#include <algorithm>
#include <utility>

#include "services/core/clock.h"

namespace expertmesh::router {

namespace {

// Longer waits overflow the standard library's clocks.
constexpr absl::Duration kLongestWait = absl::Hours(1);

}  // namespace

WakeTimer::WakeTimer(Sweep sweep)
    : sweep_(std::move(sweep)), thread_([this] { Loop(); }) {}

WakeTimer::~WakeTimer() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyOne();
  }
  thread_.join();
}

void WakeTimer::WakeBy(absl::Duration time) {
  MutexLock lock(&mutex_);
  if (time >= wake_at_) return;
  wake_at_ = time;
  changed_.NotifyOne();
}

void WakeTimer::Loop() {
  while (true) {
    absl::Duration now = Clock::Real()->Now();
    {
      MutexLock lock(&mutex_);
      while (!stop_ && wake_at_ > now) {
        const absl::Duration armed = wake_at_;
        changed_.WaitFor(lock, std::min(armed - now, kLongestWait),
                         [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                           return stop_ || wake_at_ != armed;
                         });
        now = Clock::Real()->Now();
      }
      if (stop_) return;
      wake_at_ = absl::InfiniteDuration();
    }
    WakeBy(sweep_(now));
  }
}

}  // namespace expertmesh::router
