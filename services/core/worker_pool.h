#pragma once

// A fixed set of threads that run data-parallel loops.

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "services/core/mutex.h"

namespace expertmesh {

// CPUs this process may run on (affinity mask and cgroup quota), at least 1.
int AvailableCpus();

// Runs `ParallelFor` bodies on `num_threads` threads, the caller among them.
// One ParallelFor at a time: it is called by one owning thread only. Workers
// spin for a moment between loops, then block. Allocates nothing after
// construction. The split of work over threads never affects a result: bodies
// write disjoint outputs.
class WorkerPool {
 public:
  explicit WorkerPool(int num_threads);
  ~WorkerPool();

  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls body(i) once for every i in [0, n) and returns when all are done.
  // Indices are handed out in ascending order.
  void ParallelFor(int64_t n, absl::FunctionRef<void(int64_t)> body);

 private:
  void WorkerLoop();
  void RunShare();

  // `epoch_` changes once per loop; workers wait for it to change.
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_workers_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  int64_t n_ = 0;
  const absl::FunctionRef<void(int64_t)>* body_ = nullptr;
  Mutex mutex_;
  CondVar wake_;
  std::vector<std::thread> threads_;
};

}  // namespace expertmesh
