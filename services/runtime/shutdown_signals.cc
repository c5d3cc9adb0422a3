#include "services/runtime/shutdown_signals.h"

#include <pthread.h>
#include <signal.h>

#include <cstdlib>

namespace expertmesh {
namespace {

sigset_t HandledSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

ShutdownSignals::ShutdownSignals() {
  signal(SIGPIPE, SIG_IGN);
  const sigset_t set = HandledSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { ReceiveLoop(); });
}

ShutdownSignals::~ShutdownSignals() {
  stop_.store(true);
  // Sent to the thread alone: it wakes sigwait and is seen by nobody else.
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
}

void ShutdownSignals::ReceiveLoop() {
  const sigset_t set = HandledSignals();
  while (true) {
    int signal = 0;
    if (sigwait(&set, &signal) != 0) continue;
    if (stop_.load()) return;
    MutexLock lock(&mutex_);
    if (!armed_ || signal_.has_value()) std::_Exit(128 + signal);
    signal_ = signal;
    arrived_.NotifyAll();
  }
}

void ShutdownSignals::Request() {
  MutexLock lock(&mutex_);
  if (requested_ || signal_.has_value()) return;
  requested_ = true;
  arrived_.NotifyAll();
}

std::optional<int> ShutdownSignals::Wait(absl::Duration timeout) {
  MutexLock lock(&mutex_);
  armed_ = true;
  const auto arrived = [this] { return requested_ || signal_.has_value(); };
  if (timeout == absl::InfiniteDuration()) {
    arrived_.Wait(lock, arrived);
  } else {
    arrived_.WaitFor(lock, timeout, arrived);
  }
  return requested_ ? SIGTERM : signal_;
}

}  // namespace expertmesh
