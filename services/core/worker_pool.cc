#include "services/core/worker_pool.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

#include "services/core/clock.h"
#include "services/core/spin.h"

namespace expertmesh {
namespace {

// Between two looks at the clock.
constexpr int kTurns = 64;

// The cgroup v2 quota in CPUs, or 0 where there is none.
double CgroupCpus() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return std::atof(quota.c_str()) / period;
}

}  // namespace

int AvailableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cpus = CPU_COUNT(&set);
  const double quota = CgroupCpus();
  if (quota > 0) cpus = std::min(cpus, static_cast<int>(std::ceil(quota)));
  return std::max(cpus, 1);
}

WorkerPool::WorkerPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) {
    threads_.emplace_back([this] { WorkerLoop(); });
  }
}

WorkerPool::~WorkerPool() {
  {
    MutexLock lock(&mutex_);
    stop_.store(true);
    epoch_.fetch_add(1);
  }
  wake_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::ParallelFor(int64_t n, absl::FunctionRef<void(int64_t)> body) {
  if (n <= 0) return;
  if (threads_.empty() || n == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  n_ = n;
  body_ = &body;
  next_.store(0, std::memory_order_relaxed);
  busy_workers_.store(static_cast<int>(threads_.size()),
                      std::memory_order_relaxed);
  epoch_.fetch_add(1);
  if (sleepers_.load() > 0) {
    MutexLock lock(&mutex_);
    wake_.NotifyAll();
  }
  RunShare();
  // The body lives on the caller's stack: every worker must have left it.
  // Spinning costs the longest body at most, but on a machine with fewer free
  // cores than threads the workers need this core to finish.
  for (int spins = 0; busy_workers_.load(std::memory_order_acquire) > 0;
       ++spins) {
    SpinTurn(spins);
  }
}

void WorkerPool::RunShare() {
  const auto& body = *body_;
  for (int64_t i = next_.fetch_add(1); i < n_; i = next_.fetch_add(1)) {
    body(i);
  }
}

void WorkerPool::WorkerLoop() {
  uint64_t seen = 0;
  while (true) {
    const absl::Duration until = Clock::Real()->Now() + kBriefWait;
    for (int turn = 1; epoch_.load() == seen; ++turn) {
      SpinTurn(turn, kTurns);
      if (turn % kTurns == 0 && Clock::Real()->Now() >= until) break;
    }
    if (epoch_.load() == seen) {
      MutexLock lock(&mutex_);
      sleepers_.fetch_add(1);
      wake_.Wait(lock, [&] { return epoch_.load() != seen; });
      sleepers_.fetch_sub(1);
    }
    if (stop_.load()) return;
    seen = epoch_.load();
    RunShare();
    busy_workers_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace expertmesh
