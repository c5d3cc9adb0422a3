#include "services/core/stoppable_sleep.h"

#include <condition_variable>
#include <mutex>

namespace expertmesh {

void SleepUnlessStopped(absl::Duration time, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  std::unique_lock<std::mutex> lock(mutex);
  stopped.wait_for(lock, stop, absl::ToChronoNanoseconds(time),
                   [] { return false; });
}

}  // namespace expertmesh
