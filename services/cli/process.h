#pragma once

// A child process whose standard error comes back as lines.

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// How a process ended: by itself with `code` (-1: that is not known), or by
// `signal` (0: none).
struct ProcessExit {
  int code = 0;
  int signal = 0;

  // "exited with code 1", "was killed by signal 9 (Killed)", "ended".
  std::string ToString() const;
};

// Runs in a process group of its own, so that the terminal's Ctrl-C reaches
// only the parent, with default signal handling and no standard input. Neither
// copied nor shared; one thread. The destructor kills what still runs.
class Process {
 public:
  // Starts argv[0] (a path). Errors: INTERNAL naming the program.
  static absl::StatusOr<Process> Start(const std::vector<std::string>& argv);

  Process(Process&& other);
  Process& operator=(Process&& other);
  ~Process();

  pid_t pid() const { return pid_; }
  // Readable when there are lines; -1 once the child has closed its end.
  int stderr_fd() const { return stderr_fd_; }

  // Hands over the lines that have arrived; never blocks.
  void ReadLines(absl::FunctionRef<void(absl::string_view line)> sink);

  // How it ended, once it has; then every line it wrote is readable.
  std::optional<ProcessExit> Poll();
  bool running() const { return pid_ > 0 && !exit_.has_value(); }

  // No-op when it has ended.
  void Signal(int signal);

 private:
  Process(pid_t pid, int stderr_fd) : pid_(pid), stderr_fd_(stderr_fd) {}
  void Abandon();

  pid_t pid_ = -1;
  int stderr_fd_ = -1;
  std::string partial_line_;
  std::optional<ProcessExit> exit_;
};

}  // namespace expertmesh
