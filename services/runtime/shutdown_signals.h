#pragma once

// SIGTERM and SIGINT as something to wait for.

#include <atomic>
#include <optional>
#include <thread>

#include "absl/time/time.h"
#include "services/core/mutex.h"

namespace expertmesh {

// Construct one, first thing in main: it blocks both signals in every thread
// started later, and ignores SIGPIPE (a peer that goes away is an error code,
// not the end of the process). A thread of its own receives the signals:
//   - before the first Wait they end the process with 128 + signal: a service
//     that is still loading has nothing to drain;
//   - then the first one, or Request, makes Wait return;
//   - a second one during the drain ends the process with 128 + signal.
// A child process inherits the blocked mask: unblock between fork and exec.
class ShutdownSignals {
 public:
  ShutdownSignals();
  ~ShutdownSignals();

  ShutdownSignals(const ShutdownSignals&) = delete;
  ShutdownSignals& operator=(const ShutdownSignals&) = delete;

  // Blocks until a signal arrived or the time is up; returns the signal, or
  // nothing. A signal that has arrived is returned at once, every time.
  std::optional<int> Wait(absl::Duration timeout = absl::InfiniteDuration());

  // What the process asks of itself: as if SIGTERM had arrived, unless one has.
  // Ends nothing before the first Wait nor during the drain. Thread-safe.
  void Request();

 private:
  void ReceiveLoop();

  Mutex mutex_;
  CondVar arrived_;
  bool armed_ ABSL_GUARDED_BY(mutex_) = false;
  bool requested_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<int> signal_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace expertmesh
