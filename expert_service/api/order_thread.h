#pragma once

// The thread that carries out orders.

#include <cstddef>
#include <deque>
#include <functional>
#include <stop_token>
#include <thread>

#include "services/core/mutex.h"

namespace expertmesh::expert {

// Runs tasks one after the other, at low priority: loading gives way to
// computing. Thread-safe.
class OrderThread {
 public:
  // A stop is requested by Stop: the task is to end at once.
  using Task = std::function<void(const std::stop_token& stop)>;

  explicit OrderThread(size_t max_waiting);
  // As Stop, and waits for the tasks.
  ~OrderThread();

  // False, and `task` is dropped, where too many wait.
  bool Add(Task task);
  // Of the task under way, of what waits, and of what is added later.
  void Stop();

 private:
  void Loop();

  const size_t max_waiting_;
  std::stop_source stop_;
  Mutex mutex_;
  CondVar changed_;
  bool end_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace expertmesh::expert
