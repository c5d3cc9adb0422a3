#pragma once

// A thread for long texts.

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

// Tokenizing megabytes takes seconds, and gRPC has few threads, which also
// answer health checks. Short texts are worked on where they arrive, long ones
// here, one after the other. Thread-safe.
class TextWorker {
 public:
  struct Options {
    size_t max_inline_size = size_t{64} << 10;  // bytes, or token ids
    size_t max_queue = 16;                      // jobs that wait
  };

  explicit TextWorker(const Options& options);
  // Runs what is queued. Nothing may be submitted any more.
  ~TextWorker();

  // Runs `job` at once where `size` is small, else on the worker's thread.
  // Errors (the job does not run): RESOURCE_EXHAUSTED for a full queue.
  absl::Status Run(size_t size, std::function<void()> job);

 private:
  void Loop();

  const Options options_;
  Mutex mutex_;
  CondVar wake_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace expertmesh::router
