#pragma once

// Runs the experts: one thread per device (stop 6c).

#include <prometheus/counter.h>
#include <prometheus/histogram.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/execution/running_batch.h"
#include "expert_service/execution/slot_load.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "expert_service/weights/expert_weights.h"
#include "services/core/clock.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::expert {

// Takes merged batches from the queue, gathers their rows by expert (the
// receiving side's only copy), runs the kernel, and answers. More rows than a
// kernel call takes run in several. What is hosted is looked up once per merged
// batch.
//
// A device that takes several calls at a time is kept busy: while one runs, the
// next rows are gathered and started, where any wait; where none do, what runs
// is awaited. Calls end in the order in which they started, and a batch is
// answered when its last one did. Allocates nothing of its own once warm.
class ExpertExecutor {
 public:
  struct Options {
    int64_t hidden_size = 0;
    int64_t max_rows = 0;  // of one kernel call, and what a merge aims at
    const Clock* clock = Clock::Real();
    // Told once, on the executor's thread, of the first error of the kernel,
    // after which all batches end with that. May be empty.
    std::function<void(const absl::Status&)> on_fault = {};
  };
  // Any may be absent.
  struct Metrics {
    prometheus::Histogram* batch_rows = nullptr;
    prometheus::Histogram* forward_seconds = nullptr;  // of a merged run
    prometheus::Histogram* queue_seconds = nullptr;    // of each batch
    prometheus::Counter* rows = nullptr;
  };
  // All outlive the executor.
  struct Parts {
    ExpertQueue* queue = nullptr;
    const LiveWeights* weights = nullptr;
    GroupedFfn* ffn = nullptr;  // its workspace holds max_rows
    PayloadPool* replies = nullptr;
    SlotLoad* load = nullptr;
    WorkerPool* pool = nullptr;  // for sums
  };

  // Starts the thread, which ends when the queue is closed and empty.
  ExpertExecutor(const Options& options, const Metrics& metrics,
                 const Parts& parts);
  // Closes the queue and waits until everything in it is answered.
  ~ExpertExecutor();

  ExpertExecutor(const ExpertExecutor&) = delete;
  ExpertExecutor& operator=(const ExpertExecutor&) = delete;

 private:
  void Loop();
  // Finishes what runs as long as nothing waits. False when all is over.
  bool Take(MergedBatch* merged);
  void AnswerExpired(const MergedBatch& merged);
  // Starts all calls of the batch in turn, and finishes older ones where the
  // device takes no more.
  void StartCalls(RunningBatch& batch);
  void FinishOldestCall();
  void EndCall(const KernelCall& call, const absl::Status& status);
  void CountRows(const KernelCall& call, uint32_t layer);
  void Answer(RunningBatch& batch);

  const Options options_;
  const Metrics metrics_;
  const Parts parts_;
  // Rings of max_started. Calls [first_call_, first_call_ + num_started_) are
  // under way; at most one batch has none of these, which is the next.
  std::vector<std::unique_ptr<KernelCall>> calls_;
  size_t first_call_ = 0;
  size_t num_started_ = 0;
  std::vector<std::unique_ptr<RunningBatch>> batches_;
  size_t next_batch_ = 0;
  absl::Duration busy_until_;  // time before it has been counted
  bool has_failed_ = false;
  std::thread thread_;
};

}  // namespace expertmesh::expert
