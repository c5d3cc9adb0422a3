#pragma once

// Ctrl-C while a call runs cancels the call instead of ending the program.

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "services/core/mutex.h"

namespace expertmesh {

// Reads SIGINT and SIGTERM on a thread of its own while it lives. Construct it
// before any other thread starts, so that all of them have the signals blocked.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();

  // A signal calls `cancel` from now on, on the thread of this object and at
  // most once; null: it ends the program, as it does at first, and as a second
  // signal does. What `cancel` refers to must live until the next Watch.
  void Watch(std::function<void()> cancel);

  // A signal has come since the last Watch that was not null.
  bool interrupted() const;

 private:
  void Loop();

  int signal_fd_;
  int stop_fd_;
  mutable Mutex mutex_;
  std::function<void()> cancel_ ABSL_GUARDED_BY(mutex_);
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace expertmesh
