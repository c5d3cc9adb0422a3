#pragma once

// The thread that carries out orders.

#include <atomic>
#include <cstddef>
#include <deque>
#include <functional>
#include <thread>

#include "services/core/mutex.h"

namespace expertmesh::expert {

// Runs tasks one after the other, at low priority: loading gives way to
// computing. Thread-safe.
class OrderThread {
 public:
  // `stopping` is true once Stop was called: the task is to end at once.
  using Task = std::function<void(bool stopping)>;

  explicit OrderThread(size_t max_waiting);
  // As Stop, and waits for the tasks.
  ~OrderThread();

  // False, and `task` is dropped, where too many wait.
  bool Add(Task task);
  // What waits runs with `stopping`, and so does what is added later.
  void Stop();
  bool stopping() const { return stopping_.load(); }

 private:
  void Loop();

  const size_t max_waiting_;
  std::atomic<bool> stopping_{false};
  Mutex mutex_;
  CondVar changed_;
  bool end_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace expertmesh::expert
