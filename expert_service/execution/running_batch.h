#pragma once

// A merged batch on its way through the kernel (stop 6c).

#include <prometheus/histogram.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "expert_service/batching/expert_queue.h"
#include "expert_service/execution/call_reduction.h"
#include "expert_service/execution/row_groups.h"
#include "expert_service/kernels/grouped_ffn.h"
#include "expert_service/kernels/row_sums.h"
#include "expert_service/weights/expert_weights.h"
#include "services/core/worker_pool.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::expert {

class RunningBatch;

// Rows that one kernel call computes, and the memory that they lie in. Reused.
struct KernelCall {
  RunningBatch* batch = nullptr;  // whose rows they are
  DType dtype = DType::kF32;
  RowChunk chunk;
  std::vector<const LoadedExpert*> experts;  // of chunk.experts
  RowBuffer x;                               // the rows, gathered
  RowBuffer y;
  std::byte* out = nullptr;  // y, or straight into a reply
  CallReduction reduction;   // where the kernel adds rows
  RowReduction added;        // what it says
  bool is_reduced = false;   // whether it does so in this call

  GroupedRows rows() const {
    return {experts, chunk.offsets, dtype,
            x.get(), out,           is_reduced ? &added : nullptr};
  }
};

// Hands out a merged batch's rows in kernel calls, one element type after the
// other and as many as a call takes, and puts what they give into a reply for
// each work: rows in that work's order, or added up where it asks for sums. A
// work alone with its type and without sums is computed straight into its reply
// where the kernel can do that; one that adds rows does so where all rows of a
// type are one call. Bits do not depend on any of it.
//
// Reused; allocates nothing of its own once warm. One thread.
class RunningBatch {
 public:
  struct Options {
    int64_t hidden_size = 0;
    int64_t max_rows = 0;                        // of a call
    bool writes_replies = true;                  // whether the kernel can
    bool kernel_adds = false;                    // likewise
    prometheus::Histogram* type_rows = nullptr;  // of each type; may be absent
  };

  RunningBatch(const Options& options, PayloadPool* replies, WorkerPool* pool)
      : options_(options), replies_(*replies), pool_(*pool) {}

  // What runs, or is to. Changed only before Begin.
  MergedBatch& merged() { return merged_; }
  absl::Duration begun() const { return begun_; }

  // Looks up what the works ask for in `weights`, kept until Answer, and makes
  // room for the replies of those that find it.
  void Begin(std::shared_ptr<const ExpertWeights> weights, absl::Duration now);

  // Gathers the next call's rows; false when all are handed out. Each call ends
  // with Store or Fail, in the order of the calls.
  bool NextCall(KernelCall* call);
  // Puts what a call computed where it belongs.
  void Store(const KernelCall& call);
  // Ends the works that have rows in the call with `status`.
  void Fail(const KernelCall& call, const absl::Status& status);
  // Whether all calls have been handed out and have ended.
  bool is_done() const { return all_called_ && open_calls_ == 0; }

  // Finishes every work of a batch that is done.
  void Answer(absl::Duration now);

 private:
  // What becomes of each work, in the order of merged_.works.
  struct Outcome {
    absl::Status status;
    WorkOutput output;
    int64_t num_rows = 0;  // of output.rows that are there
  };

  // OK when every expert of the work is loaded here.
  absl::Status CheckHosted(const ExpertWork& work) const;
  Outcome Prepare(const ExpertWork& work);
  // Turns to the rows of one type.
  void TakeType(DType dtype);
  void Gather(KernelCall* call) const;
  // What a call brought that has added rows up.
  void StoreReduced(const KernelCall& call);
  // As a work with sums wants them: rows to its reply, others to summed_.
  void StoreSums(const RowRange& range, const std::byte* y);
  int64_t RowBytesOf(DType dtype) const {
    return static_cast<int64_t>(RowBytes(dtype, options_.hidden_size));
  }

  const Options options_;
  PayloadPool& replies_;
  WorkerPool& pool_;  // for sums
  MergedBatch merged_;
  std::shared_ptr<const ExpertWeights> weights_;
  absl::Duration begun_;
  std::vector<Outcome> outcomes_;  // [merged_.works]

  size_t num_types_ = 0;              // turned to so far
  DType dtype_ = DType::kF32;         // the type in turn
  std::vector<ExpertWork*> of_type_;  // merged_.works, null where not to run
  std::byte* straight_ = nullptr;     // the reply to compute into, if any
  int64_t rows_to_add_up_ = 0;        // of all of_type_, if any have sums
  RowGroups groups_;                  // of of_type_
  bool all_called_ = false;
  int open_calls_ = 0;
  std::vector<SummedRow> summed_;
};

}  // namespace expertmesh::expert
