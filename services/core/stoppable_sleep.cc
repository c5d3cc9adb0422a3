#include "services/core/stoppable_sleep.h"

#include <condition_variable>
#include <mutex>
#include <utility>

namespace expertmesh {

void SleepUnlessStopped(absl::Duration time, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  std::unique_lock<std::mutex> lock(mutex);
  stopped.wait_for(lock, stop, absl::ToChronoNanoseconds(time),
                   [] { return false; });
}

std::jthread CallEvery(absl::Duration interval, std::function<void()> look) {
  return std::jthread(
      [interval, look = std::move(look)](const std::stop_token& stop) {
        for (;;) {
          SleepUnlessStopped(interval, stop);
          if (stop.stop_requested()) return;
          look();
        }
      });
}

}  // namespace expertmesh
