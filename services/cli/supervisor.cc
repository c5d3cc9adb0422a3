#include "services/cli/supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/cli/stopping.h"
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

std::string DidNotStart(absl::string_view name, absl::string_view last_line,
                        absl::string_view exit) {
  return absl::StrCat(name,
                      " did not start: ", last_line.empty() ? exit : last_line);
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
  if (json.contains("admin") && json["admin"].is_string()) {
    info.admin = json["admin"].get<std::string>();
  }
  if (json.contains("metrics") && json["metrics"].is_string()) {
    info.metrics = json["metrics"].get<std::string>();
  }
  return info;
}

// One service and its process.
struct Supervisor::Service {
  enum class State {
    kWaiting,   // for launch_at
    kStarting,  // its process runs
    kReady,
    kEnding,  // told to; killed at kill_at
    kEnded,   // for good
  };

  ServiceSpec spec;
  std::string ready_file;
  int group = 0;  // of the Start it belongs to
  State state = State::kWaiting;
  std::optional<Process> process;
  // Set from the first time it was ready on. Without, its end is for good.
  std::optional<ReadyInfo> info;
  std::string last_line;  // newest line on its standard error
  std::string fault;      // why it ended before it was ever ready
  absl::Time launched;
  absl::Time launch_at = absl::InfinitePast();
  absl::Time kill_at;
  bool is_leaving = false;  // forgotten once it has ended
  absl::Duration backoff;
};

absl::StatusOr<std::unique_ptr<Supervisor>> Supervisor::Create(
    Options options) {
  ASSIGN_OR_RETURN(RunFolder folder, RunFolder::Create());
  signal(SIGCHLD, SIG_DFL);
  const sigset_t signals = WatchedSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  const int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return std::unique_ptr<Supervisor>(new Supervisor(
      std::move(options), std::move(folder), signal_fd, wake_fd));
}

Supervisor::Supervisor(Options options, RunFolder folder, int signal_fd,
                       int wake_fd)
    : options_(std::move(options)),
      folder_(std::move(folder)),
      signal_fd_(signal_fd),
      wake_fd_(wake_fd) {}

Supervisor::~Supervisor() {
  Stop();
  close(wake_fd_);
  close(signal_fd_);
  const sigset_t signals = WatchedSignals();
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

std::vector<ServiceStatus> Supervisor::services() const {
  std::vector<ServiceStatus> out;
  MutexLock lock(&mutex_);
  for (const auto& service : services_) {
    out.push_back({service->spec.name, service->spec.pool, service->info,
                   service->process ? service->process->pid() : -1});
  }
  return out;
}

Supervisor::Service& Supervisor::AddService(ServiceSpec spec, int group) {
  services_.push_back(std::make_unique<Service>());
  Service& service = *services_.back();
  service.spec = std::move(spec);
  service.group = group;
  service.ready_file = absl::StrCat(folder_.path(), "/", next_file_++, ".json");
  return service;
}

// --- The supervisor's thread. ----------------------------------------------

absl::Status Supervisor::Start(std::vector<ServiceSpec> specs) {
  {
    MutexLock lock(&mutex_);
    const int group = next_group_++;
    for (ServiceSpec& spec : specs) {
      RETURN_IF_ERROR(Launch(AddService(std::move(spec), group)));
    }
  }
  while (true) {
    bool all_ready = true;
    {
      MutexLock lock(&mutex_);
      for (const auto& service : services_) {
        CheckReady(*service);
        if (const auto exit = CheckExit(*service)) {
          return absl::FailedPreconditionError(DidNotStart(
              service->spec.name, service->last_line, exit->ToString()));
        }
        all_ready = all_ready && service->state == Service::State::kReady;
      }
    }
    if (all_ready) return absl::OkStatus();
    if (WaitForEvents()) return absl::CancelledError("stopped by a signal");
  }
}

void Supervisor::Watch(const std::function<void()>& on_change) {
  {
    MutexLock lock(&mutex_);
    prints_ = true;
    for (const std::string& line : held_lines_) options_.print_line(line);
    held_lines_.clear();
  }
  do {
    bool changed = false;
    {
      MutexLock lock(&mutex_);
      for (const auto& service : services_) {
        if (Tend(*service)) changed = true;
      }
      const size_t forgotten =
          std::erase_if(services_, [](const auto& service) {
            return service->is_leaving &&
                   service->state == Service::State::kEnded;
          });
      if (forgotten > 0) changed = true;
    }
    if (changed) {
      // First, so that who asked for the change finds it made known.
      on_change();
      MutexLock lock(&mutex_);
      changed_.NotifyAll();
    }
  } while (!WaitForEvents());
  MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.NotifyAll();
}

bool Supervisor::Tend(Service& service) {
  using State = Service::State;
  const bool is_back = service.info.has_value();
  const bool became_ready = CheckReady(service);
  if (became_ready) {
    options_.print_line(absl::StrCat("expertmesh: ", service.spec.name,
                                     is_back ? " is back" : " is ready",
                                     " (pid ", service.process->pid(), ")"));
  }
  if (service.state == State::kEnding && absl::Now() >= service.kill_at) {
    service.process->Signal(SIGKILL);
    service.kill_at = absl::InfiniteFuture();
  }
  if (const auto exit = CheckExit(service)) {
    OnExit(service, *exit);
    return true;
  }
  if (service.state == State::kWaiting && absl::Now() >= service.launch_at) {
    const absl::Status launched = Launch(service);
    if (!launched.ok()) {
      OnFault(service, launched.message());
      return service.state == State::kEnded;
    }
  }
  return became_ready;
}

void Supervisor::OnExit(Service& service, const ProcessExit& exit) {
  const std::string how =
      absl::StrCat("(pid ", service.process->pid(), ") ", exit.ToString());
  if (!service.is_leaving) {
    OnFault(service, service.info ? how : exit.ToString());
  } else if (exit.code != 0 || exit.signal != 0) {
    options_.print_line(
        absl::StrCat("expertmesh: ", service.spec.name, " ", how));
  }
}

void Supervisor::OnFault(Service& service, absl::string_view why) {
  if (service.info.has_value()) return ScheduleRestart(service, why);
  service.fault = DidNotStart(service.spec.name, service.last_line, why);
  service.state = Service::State::kEnded;
}

bool Supervisor::WaitForEvents(absl::Time deadline) {
  std::vector<pollfd> fds = {{signal_fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}};
  {
    MutexLock lock(&mutex_);
    deadline = std::min(deadline, NextLook());
    for (const auto& service : services_) {
      if (service->process && service->process->stderr_fd() >= 0) {
        fds.push_back({service->process->stderr_fd(), POLLIN, 0});
      }
    }
  }
  // Rounded up, so that a wait of less than a millisecond is no busy loop.
  const int timeout_ms =
      deadline == absl::InfiniteFuture()
          ? -1
          : static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(
                std::max(deadline - absl::Now(), absl::ZeroDuration()),
                absl::Milliseconds(1))));
  poll(fds.data(), fds.size(), timeout_ms);

  uint64_t wakes;
  while (read(wake_fd_, &wakes, sizeof(wakes)) == sizeof(wakes)) {
  }
  MutexLock lock(&mutex_);
  for (const auto& service : services_) ReadLines(*service);
  bool stop = false;
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo != SIGCHLD) stop = true;
  }
  return stop;
}

absl::Time Supervisor::NextLook() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& service : services_) {
    switch (service->state) {
      case Service::State::kWaiting:
        next = std::min(next, service->launch_at);
        break;
      case Service::State::kStarting:
        next = std::min(next, absl::Now() + kReadyPollInterval);
        break;
      case Service::State::kEnding:
        next = std::min(next, service->kill_at);
        break;
      case Service::State::kReady:
      case Service::State::kEnded:
        break;
    }
  }
  return next;
}

void Supervisor::ReadLines(Service& service) {
  if (!service.process) return;
  service.process->ReadLines([&](absl::string_view line) {
    if (const auto bytes = ParseProgressLine(line)) {
      options_.on_load(service.process->pid(), *bytes);
      return;
    }
    service.last_line = std::string(line);
    if (prints_) {
      options_.print_line(line);
    } else {
      held_lines_.emplace_back(line);
    }
  });
}

absl::Status Supervisor::Launch(Service& service) {
  std::error_code ignored;
  std::filesystem::remove(service.ready_file, ignored);
  const ReadyInfo* last = service.info ? &*service.info : nullptr;
  ASSIGN_OR_RETURN(Process process, Process::Start(service.spec.command(
                                        service.ready_file, last)));
  service.process = std::move(process);
  service.last_line.clear();
  service.launched = absl::Now();
  service.state = Service::State::kStarting;
  return absl::OkStatus();
}

bool Supervisor::CheckReady(Service& service) {
  if (service.state != Service::State::kStarting ||
      access(service.ready_file.c_str(), F_OK) != 0) {
    return false;
  }
  absl::StatusOr<ReadyInfo> info = ReadReadyInfo(service.ready_file);
  if (!info.ok()) return false;
  service.info = *std::move(info);
  service.state = Service::State::kReady;
  return true;
}

std::optional<ProcessExit> Supervisor::CheckExit(Service& service) {
  if (service.state == Service::State::kWaiting ||
      service.state == Service::State::kEnded) {
    return std::nullopt;
  }
  std::optional<ProcessExit> exit = service.process->Poll();
  if (!exit) return std::nullopt;
  ReadLines(service);
  service.state = Service::State::kEnded;
  return exit;
}

void Supervisor::ScheduleRestart(Service& service, absl::string_view why) {
  const absl::Time now = absl::Now();
  if (service.backoff == absl::ZeroDuration() ||
      now - service.launched >= options_.healthy_after) {
    service.backoff = options_.first_backoff;
  } else {
    service.backoff = std::min(service.backoff * 2, options_.max_backoff);
  }
  service.launch_at = now + service.backoff;
  service.state = Service::State::kWaiting;
  options_.print_line(absl::StrCat("expertmesh: ", service.spec.name, " ", why,
                                   "; restarting in ",
                                   Seconds(service.backoff)));
}

// --- Requests of other threads. --------------------------------------------

absl::Status Supervisor::Add(std::vector<ServiceSpec> specs) {
  // Only we and Stop, which comes after, forget services.
  std::vector<const Service*> added;
  std::vector<std::string> names;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    for (ServiceSpec& spec : specs) {
      names.push_back(spec.name);
      added.push_back(&AddService(std::move(spec), /*group=*/0));
    }
    Wake();
    changed_.Wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      if (stopping_) return true;
      bool all_ready = true;
      for (const Service* service : added) {
        if (status.ok() && !service->fault.empty()) {
          status = absl::FailedPreconditionError(service->fault);
        }
        all_ready = all_ready && service->info.has_value();
      }
      return all_ready || !status.ok();
    });
    if (stopping_) return Stopping();
  }
  if (!status.ok()) RETURN_IF_ERROR(Remove(names));
  return status;
}

absl::Status Supervisor::Remove(const std::vector<std::string>& names) {
  MutexLock lock(&mutex_);
  const auto is_named = [&](const std::unique_ptr<Service>& service) {
    return std::find(names.begin(), names.end(), service->spec.name) !=
           names.end();
  };
  for (const auto& service : services_) {
    if (is_named(service)) BeginToEnd(*service);
  }
  Wake();
  changed_.Wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ ||
           std::none_of(services_.begin(), services_.end(), is_named);
  });
  return stopping_ ? Stopping() : absl::OkStatus();
}

bool Supervisor::SleepUnlessStopping(absl::Duration duration) {
  MutexLock lock(&mutex_);
  return changed_.WaitFor(
      lock, duration,
      [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_; });
}

void Supervisor::Wake() {
  const uint64_t one = 1;
  // Fails only where many wakes are unread, which will do.
  (void)!write(wake_fd_, &one, sizeof(one));
}

// --- The end. --------------------------------------------------------------

void Supervisor::BeginToEnd(Service& service) {
  service.is_leaving = true;
  if (!service.process || !service.process->running()) {
    service.state = Service::State::kEnded;
    return;
  }
  service.process->Signal(SIGTERM);
  service.state = Service::State::kEnding;
  service.kill_at = absl::Now() + options_.stop_timeout;
}

void Supervisor::Stop() {
  int group;
  {
    MutexLock lock(&mutex_);
    group = next_group_;
    for (const auto& service : services_) {
      // None is launched any more.
      if (service->state == Service::State::kWaiting) BeginToEnd(*service);
    }
  }
  while (--group >= 0) StopGroup(group);
  MutexLock lock(&mutex_);
  next_group_ = 0;
}

void Supervisor::StopGroup(int group) {
  const auto is_member = [group](const std::unique_ptr<Service>& service) {
    return service->group == group;
  };
  const auto running = [&] {
    MutexLock lock(&mutex_);
    bool any = false;
    for (const auto& service : services_) {
      if (!is_member(service)) continue;
      CheckExit(*service);
      any = any || service->state != Service::State::kEnded;
    }
    return any;
  };
  {
    MutexLock lock(&mutex_);
    for (const auto& service : services_) {
      if (is_member(service)) BeginToEnd(*service);
    }
  }
  const absl::Time deadline = absl::Now() + options_.stop_timeout;
  while (running() && absl::Now() < deadline) {
    if (WaitForEvents(deadline)) break;
  }
  MutexLock lock(&mutex_);
  // ~Process kills and reaps what has not ended.
  std::erase_if(services_, is_member);
}

}  // namespace expertmesh
