#include "services/cli/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

extern char** environ;

namespace expertmesh {
namespace {

// Default handling of every signal and an empty mask: the parent blocks what it
// reads from a signalfd, and children would inherit that.
class SpawnAttributes {
 public:
  SpawnAttributes() {
    posix_spawnattr_init(&attributes_);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setpgroup(&attributes_, 0);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK |
                                               POSIX_SPAWN_SETSIGDEF |
                                               POSIX_SPAWN_SETPGROUP);
  }
  ~SpawnAttributes() { posix_spawnattr_destroy(&attributes_); }
  const posix_spawnattr_t* get() const { return &attributes_; }

 private:
  posix_spawnattr_t attributes_;
};

class SpawnFiles {
 public:
  explicit SpawnFiles(int stderr_fd) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null",
                                     O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions_, stderr_fd, STDERR_FILENO);
  }
  ~SpawnFiles() { posix_spawn_file_actions_destroy(&actions_); }
  const posix_spawn_file_actions_t* get() const { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

}  // namespace

std::string ProcessExit::ToString() const {
  if (code < 0) return "ended";
  if (signal == 0) return absl::StrCat("exited with code ", code);
  return absl::StrCat("was killed by signal ", signal, " (", strsignal(signal),
                      ")");
}

absl::StatusOr<Process> Process::Start(const std::vector<std::string>& argv) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
    return absl::InternalError(
        absl::StrCat("cannot make a pipe: ", strerror(errno)));
  }
  fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);

  std::vector<char*> args;
  for (const std::string& arg : argv) {
    args.push_back(const_cast<char*>(arg.c_str()));
  }
  args.push_back(nullptr);

  pid_t pid = -1;
  const int error = posix_spawn(&pid, args[0], SpawnFiles(pipe_fds[1]).get(),
                                SpawnAttributes().get(), args.data(), environ);
  close(pipe_fds[1]);
  if (error != 0) {
    close(pipe_fds[0]);
    return absl::InternalError(
        absl::StrCat("cannot start ", argv[0], ": ", strerror(error)));
  }
  return Process(pid, pipe_fds[0]);
}

Process::Process(Process&& other) { *this = std::move(other); }

Process& Process::operator=(Process&& other) {
  if (this == &other) return *this;
  Abandon();
  pid_ = std::exchange(other.pid_, -1);
  stderr_fd_ = std::exchange(other.stderr_fd_, -1);
  partial_line_ = std::move(other.partial_line_);
  exit_ = std::exchange(other.exit_, std::nullopt);
  return *this;
}

Process::~Process() { Abandon(); }

void Process::Abandon() {
  if (running()) {
    Signal(SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (stderr_fd_ >= 0) close(stderr_fd_);
  pid_ = stderr_fd_ = -1;
}

void Process::ReadLines(absl::FunctionRef<void(absl::string_view)> sink) {
  char buffer[4096];
  while (stderr_fd_ >= 0) {
    const ssize_t n = read(stderr_fd_, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n <= 0) {
      close(stderr_fd_);
      stderr_fd_ = -1;
      if (!partial_line_.empty()) partial_line_ += '\n';
    } else {
      partial_line_.append(buffer, n);
    }
    size_t start = 0, end;
    while ((end = partial_line_.find('\n', start)) != std::string::npos) {
      sink(absl::string_view(partial_line_).substr(start, end - start));
      start = end + 1;
    }
    partial_line_.erase(0, start);
  }
}

std::optional<ProcessExit> Process::Poll() {
  if (!running()) return exit_;
  int status = 0;
  const pid_t ended = waitpid(pid_, &status, WNOHANG);
  // Someone else has reaped it: the kernel, where SIGCHLD is ignored.
  const bool reaped = ended < 0 && errno == ECHILD;
  if (ended != pid_ && !reaped) return std::nullopt;
  exit_.emplace();
  if (reaped) {
    exit_->code = -1;
  } else if (WIFSIGNALED(status)) {
    exit_->signal = WTERMSIG(status);
  } else {
    exit_->code = WEXITSTATUS(status);
  }
  return exit_;
}

void Process::Signal(int signal) {
  if (running()) kill(pid_, signal);
}

}  // namespace expertmesh
