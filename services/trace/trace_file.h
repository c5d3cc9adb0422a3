#pragma once

// Spans → a file in OTLP/JSON lines.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/core/mutex.h"
#include "services/trace/span.h"

namespace expertmesh {

// Writes spans on a thread of its own, each as soon as can be and those that
// come meanwhile together, as one line. Spans that find the queue full, or the
// file broken, are dropped and counted. Thread-safe.
class TraceFile {
 public:
  struct Options {
    std::string path;  // appended to; made where it is not there
    std::string service_name;
    size_t max_queued = 4096;  // spans
    // Hears how many were dropped, on any thread; may be absent.
    std::function<void(int64_t spans)> on_dropped;
  };

  // Errors: INVALID_ARGUMENT where the file cannot be written, or is a pipe
  // that nobody reads.
  static absl::StatusOr<std::unique_ptr<TraceFile>> Open(
      const Options& options);
  // Writes what is queued, or gives up on a pipe that is full for a second.
  ~TraceFile();

  // Never waits for the file.
  void Add(Span span);

 private:
  TraceFile(const Options& options, int file);
  void Run();
  void Write(const std::vector<Span>& spans);
  // The error's number; 0: none.
  int WriteAll(absl::string_view bytes);
  void Drop(int64_t spans);

  const Options options_;
  const int file_;
  const Attributes resource_;
  bool has_failed_ = false;  // of the thread
  bool is_torn_ = false;     // of the thread: the last line lacks its end

  Mutex mutex_;
  CondVar changed_;
  std::vector<Span> queue_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace expertmesh
