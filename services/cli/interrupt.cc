#include "services/cli/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <utility>

namespace expertmesh {
namespace {

sigset_t InterruptSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

// Ends the program as the signal would have by itself.
void EndBySignal(int number) {
  const sigset_t signals = InterruptSignals();
  signal(number, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  raise(number);
}

}  // namespace

Interrupts::Interrupts() {
  const sigset_t signals = InterruptSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal_fd_ = signalfd(-1, &signals, SFD_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  thread_ = std::thread([this] { Loop(); });
}

Interrupts::~Interrupts() {
  eventfd_write(stop_fd_, 1);
  thread_.join();
  close(stop_fd_);
  close(signal_fd_);
  const sigset_t signals = InterruptSignals();
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

void Interrupts::Watch(std::function<void()> cancel) {
  MutexLock lock(&mutex_);
  cancel_ = std::move(cancel);
  if (cancel_ != nullptr) interrupted_ = false;
}

bool Interrupts::interrupted() const {
  MutexLock lock(&mutex_);
  return interrupted_;
}

void Interrupts::Loop() {
  while (true) {
    pollfd fds[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    poll(fds, 2, -1);
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (fds[0].revents == 0 ||
        read(signal_fd_, &info, sizeof(info)) != sizeof(info)) {
      continue;
    }
    MutexLock lock(&mutex_);
    // A second signal ends the program even if the cancelled call hangs.
    if (cancel_ == nullptr || interrupted_) EndBySignal(info.ssi_signo);
    interrupted_ = true;
    cancel_();
  }
}

}  // namespace expertmesh
