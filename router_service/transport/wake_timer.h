#pragma once

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// One thread that wakes when something is due. It holds no list of what: its
// `sweep` looks at everything, does what is due, and returns when it wants to
// look again (InfiniteDuration: not until woken). Deadlines are rarely reached,
// so keeping them sorted would cost more than looking. Thread-safe.
class WakeTimer {
 public:
  // Times are those of Clock::Real(). `sweep` runs on the timer's thread, not
  // before the first WakeBy.
  using Sweep = std::function<absl::Duration(absl::Duration now)>;

  explicit WakeTimer(Sweep sweep);
  // Waits for a running sweep.
  ~WakeTimer();

  // Sweeps at `time` or before.
  void WakeBy(absl::Duration time);

 private:
  void Loop();

  const Sweep sweep_;
  Mutex mutex_;
  CondVar changed_;
  absl::Duration wake_at_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteDuration();
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace expertmesh::router
