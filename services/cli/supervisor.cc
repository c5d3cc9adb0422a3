#include "services/cli/supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

// How often a ready file is looked for while a service starts.
constexpr absl::Duration kReadyPollInterval = absl::Milliseconds(10);

sigset_t WatchedSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) {
    sigaddset(&signals, signal);
  }
  return signals;
}

std::string Seconds(absl::Duration duration) {
  return absl::StrCat(absl::ToDoubleSeconds(duration), " s");
}

}  // namespace

absl::StatusOr<ReadyInfo> ReadReadyInfo(const std::string& path) {
  std::ifstream file(path);
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object() || !json.contains("grpc") ||
      !json["grpc"].is_string()) {
    return absl::InternalError(
        absl::StrCat(path, ": is no ready file: it has no \"grpc\" address"));
  }
  ReadyInfo info;
  info.grpc = json["grpc"].get<std::string>();
  if (json.contains("metrics") && json["metrics"].is_string()) {
    info.metrics = json["metrics"].get<std::string>();
  }
  return info;
}

SupervisedService::SupervisedService(ServiceSpec spec, std::string ready_file)
    : spec_(std::move(spec)), ready_file_(std::move(ready_file)) {}

absl::StatusOr<std::unique_ptr<Supervisor>> Supervisor::Create(
    Options options) {
  ASSIGN_OR_RETURN(RunFolder folder, RunFolder::Create());
  signal(SIGCHLD, SIG_DFL);
  const sigset_t signals = WatchedSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  return std::unique_ptr<Supervisor>(
      new Supervisor(std::move(options), std::move(folder), signal_fd));
}

Supervisor::Supervisor(Options options, RunFolder folder, int signal_fd)
    : options_(std::move(options)),
      folder_(std::move(folder)),
      signal_fd_(signal_fd) {}

Supervisor::~Supervisor() {
  Stop();
  close(signal_fd_);
  const sigset_t signals = WatchedSignals();
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

absl::Status Supervisor::Start(std::vector<ServiceSpec> specs) {
  group_starts_.push_back(services_.size());
  for (ServiceSpec& spec : specs) {
    services_.push_back(std::make_unique<SupervisedService>(
        std::move(spec),
        absl::StrCat(folder_.path(), "/", services_.size(), ".json")));
    RETURN_IF_ERROR(Launch(*services_.back()));
  }
  while (true) {
    bool all_ready = true;
    for (const auto& service : services_) {
      CheckReady(*service);
      if (const auto exit = CheckExit(*service)) {
        return absl::FailedPreconditionError(
            absl::StrCat(service->name(), " did not start: ",
                         service->last_line_.empty() ? exit->ToString()
                                                     : service->last_line_));
      }
      all_ready = all_ready && service->ready();
    }
    if (all_ready) return absl::OkStatus();
    if (WaitForEvents(PollInterval()))
      return absl::CancelledError("stopped by a signal");
  }
}

void Supervisor::Watch(const std::function<void()>& on_ready) {
  started_ = true;
  for (const std::string& line : held_lines_) options_.print_line(line);
  held_lines_.clear();

  do {
    for (const auto& service : services_) {
      if (CheckReady(*service)) {
        options_.print_line(absl::StrCat("expertmesh: ", service->name(),
                                         " is back (pid ", service->pid(),
                                         ")"));
        on_ready();
      }
      const pid_t pid = service->pid();
      if (const auto exit = CheckExit(*service)) {
        ScheduleRestart(*service,
                        absl::StrCat("(pid ", pid, ") ", exit->ToString()));
      }
      if (service->state_ == SupervisedService::State::kWaitingToRestart &&
          absl::Now() >= service->restart_at_) {
        const absl::Status launched = Launch(*service);
        if (!launched.ok()) ScheduleRestart(*service, launched.message());
      }
    }
  } while (!WaitForEvents(PollInterval()));
}

bool Supervisor::WaitForEvents(absl::Duration max_wait) {
  std::vector<pollfd> fds = {{signal_fd_, POLLIN, 0}};
  for (const auto& service : services_) {
    if (service->process_ && service->process_->stderr_fd() >= 0) {
      fds.push_back({service->process_->stderr_fd(), POLLIN, 0});
    }
  }
  // Rounded up, so that a wait of less than a millisecond is no busy loop.
  const int timeout_ms =
      max_wait == absl::InfiniteDuration()
          ? -1
          : static_cast<int>(absl::ToInt64Milliseconds(
                absl::Ceil(max_wait, absl::Milliseconds(1))));
  poll(fds.data(), fds.size(), timeout_ms);

  for (const auto& service : services_) ReadLines(*service);
  bool stop = false;
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo != SIGCHLD) stop = true;
  }
  return stop;
}

absl::Duration Supervisor::PollInterval() const {
  absl::Duration interval = absl::InfiniteDuration();
  for (const auto& service : services_) {
    if (service->state_ == SupervisedService::State::kStarting) {
      interval = std::min(interval, kReadyPollInterval);
    }
    if (service->state_ == SupervisedService::State::kWaitingToRestart) {
      interval = std::min(interval, std::max(service->restart_at_ - absl::Now(),
                                             absl::ZeroDuration()));
    }
  }
  return interval;
}

void Supervisor::ReadLines(SupervisedService& service) {
  if (!service.process_) return;
  service.process_->ReadLines([&](absl::string_view line) {
    service.last_line_ = std::string(line);
    if (started_) {
      options_.print_line(line);
    } else {
      held_lines_.emplace_back(line);
    }
  });
}

absl::Status Supervisor::Launch(SupervisedService& service) {
  std::error_code ignored;
  std::filesystem::remove(service.ready_file_, ignored);
  const ReadyInfo* last = service.info_ ? &*service.info_ : nullptr;
  ASSIGN_OR_RETURN(Process process, Process::Start(service.spec_.command(
                                        service.ready_file_, last)));
  service.process_ = std::move(process);
  service.last_line_.clear();
  service.started_ = absl::Now();
  service.state_ = SupervisedService::State::kStarting;
  return absl::OkStatus();
}

bool Supervisor::CheckReady(SupervisedService& service) {
  if (service.state_ != SupervisedService::State::kStarting ||
      access(service.ready_file_.c_str(), F_OK) != 0) {
    return false;
  }
  absl::StatusOr<ReadyInfo> info = ReadReadyInfo(service.ready_file_);
  if (!info.ok()) return false;
  service.info_ = *std::move(info);
  service.state_ = SupervisedService::State::kReady;
  return true;
}

std::optional<ProcessExit> Supervisor::CheckExit(SupervisedService& service) {
  if (service.state_ != SupervisedService::State::kStarting &&
      service.state_ != SupervisedService::State::kReady) {
    return std::nullopt;
  }
  std::optional<ProcessExit> exit = service.process_->Poll();
  if (!exit) return std::nullopt;
  ReadLines(service);
  service.state_ = SupervisedService::State::kStopped;
  return exit;
}

void Supervisor::ScheduleRestart(SupervisedService& service,
                                 absl::string_view why) {
  const absl::Time now = absl::Now();
  if (service.backoff_ == absl::ZeroDuration() ||
      now - service.started_ >= options_.healthy_after) {
    service.backoff_ = options_.first_backoff;
  } else {
    service.backoff_ = std::min(service.backoff_ * 2, options_.max_backoff);
  }
  service.restart_at_ = now + service.backoff_;
  service.state_ = SupervisedService::State::kWaitingToRestart;
  options_.print_line(absl::StrCat("expertmesh: ", service.name(), " ", why,
                                   "; restarting in ",
                                   Seconds(service.backoff_)));
}

void Supervisor::Stop() {
  while (!group_starts_.empty()) {
    StopGroup(group_starts_.back(), services_.size());
    services_.resize(group_starts_.back());
    group_starts_.pop_back();
  }
}

void Supervisor::StopGroup(size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) {
    SupervisedService& service = *services_[i];
    service.state_ = SupervisedService::State::kStopped;
    if (service.process_) service.process_->Signal(SIGTERM);
  }
  const absl::Time deadline = absl::Now() + options_.stop_timeout;
  const auto running = [&] {
    return std::any_of(services_.begin() + first, services_.begin() + last,
                       [](const auto& service) {
                         return service->process_ && !service->process_->Poll();
                       });
  };
  while (running() && absl::Now() < deadline) {
    if (WaitForEvents(deadline - absl::Now())) break;
  }
  // ~Process kills and reaps what has not ended.
}

}  // namespace expertmesh
