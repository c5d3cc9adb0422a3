#pragma once

// Runs the experts: one thread per device (stop 6c).

#include <prometheus/counter.h>
#include <prometheus/histogram.h>

#include <cstdint>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/execution/row_groups.h"
#include "expert_service/execution/slot_load.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "expert_service/kernels/row_sums.h"
#include "expert_service/weights/expert_weights.h"
#include "services/core/clock.h"
#include "services/linalg/buffer.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::expert {

// Takes merged batches from the queue, gathers their rows by expert into one
// aligned workspace (the receiving side's only copy), runs the kernel once per
// element type, and puts each batch's rows into a reply buffer of its own in
// that batch's order, or adds them up there where the batch asks for sums. A
// batch alone in its run and without sums is computed straight into its reply.
// More rows than the workspace holds run in several chunks; bits do not
// depend on that. What is hosted is looked up once per merged batch. Allocates
// nothing of its own once warm.
class ExpertExecutor {
 public:
  struct Options {
    int64_t hidden_size = 0;
    int64_t max_rows = 0;  // of one kernel call, and what a merge aims at
    const Clock* clock = Clock::Real();
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
    WorkerPool* pool = nullptr;  // the kernel's; here for sums
  };

  // Starts the thread, which ends when the queue is closed and empty.
  ExpertExecutor(const Options& options, const Metrics& metrics,
                 const Parts& parts);
  // Closes the queue and waits until everything in it is answered.
  ~ExpertExecutor();

  ExpertExecutor(const ExpertExecutor&) = delete;
  ExpertExecutor& operator=(const ExpertExecutor&) = delete;

 private:
  // What becomes of each work of the merged batch, in its order.
  struct Outcome {
    absl::Status status;
    WorkOutput output;
    int64_t num_rows = 0;  // of output.rows that are there
  };

  void Loop();
  void RunMerged();
  // OK when every expert of the work is loaded here.
  absl::Status CheckHosted(const ExpertWork& work) const;
  void PrepareReplies();
  void RunType(DType dtype);
  absl::Status RunChunk(DType dtype, std::byte* y);
  void Scatter(DType dtype, const std::byte* y);
  // As a work with sums wants them: rows to its reply, others to summed_.
  void ScatterRange(const RowRange& range, int64_t row_bytes,
                    const std::byte* y);
  void CountRows();
  void FinishAll(absl::Duration started);

  const Options options_;
  const Metrics metrics_;
  const Parts parts_;
  Buffer x_;  // [max_rows, hidden_size] of the widest type
  Buffer y_;
  MergedBatch merged_;
  std::shared_ptr<const ExpertWeights> weights_;  // while a batch runs
  std::vector<Outcome> outcomes_;                 // [merged_.works]
  std::vector<ExpertWork*> of_type_;  // merged_.works, null where not to run
  RowGroups groups_;
  RowChunk chunk_;
  std::vector<const PackedExpert*> chunk_experts_;
  std::vector<SummedRow> summed_;
  std::thread thread_;
};

}  // namespace expertmesh::expert
