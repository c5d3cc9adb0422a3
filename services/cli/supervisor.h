#pragma once

// Keeps a set of local services running: starts them, restarts what dies, stops
// them all.

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/cli/process.h"
#include "services/cli/run_folder.h"

namespace expertmesh {

// What a service writes into its ready file.
struct ReadyInfo {
  std::string grpc;     // "127.0.0.1:41001"
  std::string metrics;  // "http://127.0.0.1:41002/metrics"; empty: none
};
absl::StatusOr<ReadyInfo> ReadReadyInfo(const std::string& path);

struct ServiceSpec {
  std::string name;  // for messages: "expert service 0-3"
  // The command line of a start. `last` is what the service announced when it
  // ran before (null at first), so that it comes back on the same ports.
  std::function<std::vector<std::string>(const std::string& ready_file,
                                         const ReadyInfo* last)>
      command;
};

// One service and its process.
class SupervisedService {
 public:
  SupervisedService(ServiceSpec spec, std::string ready_file);

  const std::string& name() const { return spec_.name; }
  // Set from the first time it was ready on, also while it restarts.
  const std::optional<ReadyInfo>& info() const { return info_; }
  bool ready() const { return state_ == State::kReady; }
  pid_t pid() const { return process_ ? process_->pid() : -1; }

 private:
  friend class Supervisor;
  enum class State { kStopped, kStarting, kReady, kWaitingToRestart };

  ServiceSpec spec_;
  const std::string ready_file_;
  State state_ = State::kStopped;
  std::optional<Process> process_;
  std::optional<ReadyInfo> info_;
  std::string last_line_;  // newest line on its standard error
  absl::Time started_;
  absl::Time restart_at_;
  absl::Duration backoff_;
};

// One thread. SIGCHLD, SIGTERM, SIGINT and SIGHUP are blocked while it lives
// and read from a descriptor; so construct it before any other thread starts.
// SIGCHLD has its default handling from then on: a parent may have left it
// ignored, and then children would end unnoticed.
class Supervisor {
 public:
  struct Options {
    absl::Duration first_backoff = absl::Milliseconds(250);
    absl::Duration max_backoff = absl::Seconds(10);
    // A service that ran this long is restarted with the first backoff again.
    absl::Duration healthy_after = absl::Seconds(30);
    // Time to end after SIGTERM before SIGKILL.
    absl::Duration stop_timeout = absl::Seconds(15);
    // Lines of the services and our own reports. The lines of a service that
    // fails to start are not passed on: the last one becomes the error.
    std::function<void(absl::string_view line)> print_line;
  };

  // Errors: INTERNAL when there is no place for ready files.
  static absl::StatusOr<std::unique_ptr<Supervisor>> Create(Options options);
  // Stops everything.
  ~Supervisor();

  // Starts services side by side and waits until all are ready. Errors:
  // CANCELLED after a signal to stop; FAILED_PRECONDITION with the last line of
  // a service that ended instead; then nothing has been printed.
  absl::Status Start(std::vector<ServiceSpec> specs);

  // All services, in order of starting.
  const std::vector<std::unique_ptr<SupervisedService>>& services() const {
    return services_;
  }

  // Restarts what ends until a signal says to stop. `on_ready` runs each time a
  // restarted service is ready again.
  void Watch(const std::function<void()>& on_ready);

  // Ends services last started first, those of one Start together; a second
  // signal ends the wait.
  void Stop();

 private:
  Supervisor(Options options, RunFolder folder, int signal_fd);

  // Waits for a signal, a line or the end of `max_wait`; true if told to stop.
  bool WaitForEvents(absl::Duration max_wait);
  // Until something must be looked at again.
  absl::Duration PollInterval() const;
  void ReadLines(SupervisedService& service);
  absl::Status Launch(SupervisedService& service);
  // Notices that a service became ready; true if it did.
  bool CheckReady(SupervisedService& service);
  // Notices that a running service ended.
  std::optional<ProcessExit> CheckExit(SupervisedService& service);
  void ScheduleRestart(SupervisedService& service, absl::string_view why);
  void StopGroup(size_t first, size_t last);

  const Options options_;
  const RunFolder folder_;  // of ready files
  const int signal_fd_;
  std::vector<std::unique_ptr<SupervisedService>> services_;
  std::vector<size_t> group_starts_;  // index of each Start's first service
  bool started_ = false;              // lines are passed on
  std::vector<std::string> held_lines_;
};

}  // namespace expertmesh
