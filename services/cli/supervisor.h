#pragma once

// Keeps a set of local services running: starts them, restarts what dies, stops
// them all.

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/cli/process.h"
#include "services/cli/run_folder.h"
#include "services/core/load_progress.h"
#include "services/core/mutex.h"

namespace expertmesh {

// What a service writes into its ready file.
struct ReadyInfo {
  std::string grpc;     // "127.0.0.1:41001"
  std::string admin;    // of a router: "127.0.0.1:41003"
  std::string metrics;  // "http://127.0.0.1:41002/metrics"; empty: none
};
absl::StatusOr<ReadyInfo> ReadReadyInfo(const std::string& path);

struct ServiceSpec {
  std::string name;  // for messages and for Remove: "expert service 0-3"
  std::string pool;  // of an expert service; "": it is none
  // The command line of a start. `last` is what the service announced when it
  // ran before (null at first), so that it comes back on the same ports.
  std::function<std::vector<std::string>(const std::string& ready_file,
                                         const ReadyInfo* last)>
      command;
};

// A service as it is now.
struct ServiceStatus {
  std::string name;
  std::string pool;
  // Set from the first time it was ready on, also while it restarts.
  std::optional<ReadyInfo> info;
  pid_t pid = -1;
};

// Starts and watches on one thread, that of Start, Watch and Stop; others may
// ask it to start and end services meanwhile. SIGCHLD, SIGTERM, SIGINT and
// SIGHUP are blocked while it lives and read from a descriptor; so construct it
// before any other thread starts. SIGCHLD has its default handling from then
// on: a parent may have left it ignored, and then children would end unnoticed.
class Supervisor {
 public:
  struct Options {
    absl::Duration first_backoff = absl::Milliseconds(250);
    absl::Duration max_backoff = absl::Seconds(10);
    // A service that ran this long is restarted with the first backoff again.
    absl::Duration healthy_after = absl::Seconds(30);
    // Time to end after SIGTERM before SIGKILL.
    absl::Duration stop_timeout = absl::Seconds(15);
    // Lines of the services and our own reports, on the supervisor's thread.
    // The lines of a service that fails to start at first are not passed on:
    // the last one becomes the error.
    std::function<void(absl::string_view line)> print_line;
    // How far a service has loaded its weights, now and then while it starts;
    // on the supervisor's thread.
    std::function<void(pid_t service, LoadedBytes bytes)> on_load =
        [](pid_t, LoadedBytes) {};
  };

  // Errors: INTERNAL when there is no place for ready files.
  static absl::StatusOr<std::unique_ptr<Supervisor>> Create(Options options);
  // Stops everything.
  ~Supervisor();

  // Of this run, for files that end with it.
  const std::string& folder() const { return folder_.path(); }

  // Starts services side by side and waits until all are ready. Errors:
  // CANCELLED after a signal to stop; FAILED_PRECONDITION with the last line of
  // a service that ended instead; then no line has been printed.
  absl::Status Start(std::vector<ServiceSpec> specs);

  // All services, in order of starting. Thread-safe.
  std::vector<ServiceStatus> services() const;

  // Restarts what ends until a signal says to stop. `on_change` runs each time
  // that a service became ready or has left.
  void Watch(const std::function<void()>& on_change);

  // Starts services side by side while Watch runs, and waits until all are
  // ready; they belong to those of the first Start. Thread-safe, but not for
  // the supervisor's own thread. Errors: FAILED_PRECONDITION with the last line
  // of a service that ended instead, and then none of them is left; CANCELLED
  // once Watch ends.
  absl::Status Add(std::vector<ServiceSpec> specs);

  // Ends services with SIGTERM, waits until they have ended, and forgets them.
  // Thread-safe, as Add. Errors: CANCELLED once Watch ends.
  absl::Status Remove(const std::vector<std::string>& names);

  // Waits; true, and at once, when Watch ends. Thread-safe.
  bool SleepUnlessStopping(absl::Duration duration);

  // Ends services last started first, those of one Start together; a second
  // signal ends the wait.
  void Stop();

 private:
  struct Service;

  Supervisor(Options options, RunFolder folder, int signal_fd, int wake_fd);

  // Waits for a signal, a line, a request or until something is due; true if
  // told to stop.
  bool WaitForEvents(absl::Time deadline = absl::InfiniteFuture());
  // When something must be looked at again.
  absl::Time NextLook() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Service& AddService(ServiceSpec spec, int group)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReadLines(Service& service) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Launch(Service& service) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Does what is due while Watch runs; true if the service became ready or has
  // ended for good.
  bool Tend(Service& service) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Notices that a service became ready; true if it did.
  bool CheckReady(Service& service) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Notices that a process ended.
  std::optional<ProcessExit> CheckExit(Service& service)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnExit(Service& service, const ProcessExit& exit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // It has ended, or could not be started.
  void OnFault(Service& service, absl::string_view why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ScheduleRestart(Service& service, absl::string_view why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BeginToEnd(Service& service) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopGroup(int group);
  // Makes the supervisor's thread look at everything now.
  void Wake();

  const Options options_;
  const RunFolder folder_;
  const int signal_fd_;
  const int wake_fd_;  // an eventfd
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::unique_ptr<Service>> services_ ABSL_GUARDED_BY(mutex_);
  int next_group_ ABSL_GUARDED_BY(mutex_) = 0;  // of the next Start
  int next_file_ ABSL_GUARDED_BY(mutex_) = 0;
  bool prints_ ABSL_GUARDED_BY(mutex_) = false;    // lines are passed on
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;  // Watch has ended
  std::vector<std::string> held_lines_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertmesh
