#pragma once

// Ctrl-C while a call runs cancels the call instead of ending the program.

#include <grpcpp/client_context.h>

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

  // A signal cancels `context` from now on; null: it ends the program, as it
  // does at first. The context must stay alive until the next Watch.
  void Watch(grpc::ClientContext* context);

  // A signal has come since the last Watch of a context.
  bool interrupted() const;

 private:
  void Loop();

  int signal_fd_;
  int stop_fd_;
  mutable Mutex mutex_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace expertmesh
