#pragma once

// The hand-off from streams to the executor (stop 6b).
//
// Bounded by rows. Whoever runs the experts takes what has gathered for one
// layer, from all streams in turn, and never waits for company: an idle device
// costs more than a small batch.

#include <prometheus/gauge.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "expert_service/batching/credit_ledger.h"
#include "expert_service/batching/expert_work.h"
#include "services/core/clock.h"
#include "services/core/mutex.h"

namespace expertmesh::expert {

// Batches of one layer that run together. Meant to be reused: its vectors keep
// their capacity.
struct MergedBatch {
  uint32_t layer = 0;
  int64_t num_rows = 0;            // of `works`
  std::vector<ExpertWork*> works;  // round-robin over streams, each in order
  // Of any layer, their time over: to be answered DEADLINE_EXCEEDED.
  std::vector<ExpertWork*> expired;
};

// Thread-safe; one thread takes. Holds no ownership of works: each one added is
// handed out exactly once, by TakeMerged, TryTakeMerged or Remove.
class ExpertQueue {
 public:
  struct Options {
    // Waiting; more are refused. Also what streams are granted together.
    int64_t capacity_rows = 16384;
    const Clock* clock = Clock::Real();
    // Called by the thread that takes, before it blocks: a chance to look for
    // work itself until `has_work`. May be empty.
    std::function<void(absl::FunctionRef<bool()> has_work)> await_briefly = {};
  };
  struct Metrics {
    // Waiting, and how many may; any may be absent.
    prometheus::Gauge* queue_rows = nullptr;
    prometheus::Gauge* queue_limit_rows = nullptr;
  };
  // The place of one router's batches, in order of arrival.
  class Stream;

  ExpertQueue(const Options& options, const Metrics& metrics);
  // Requires that every work has been handed out.
  ~ExpertQueue();

  // A new stream, the last in turn. The queue owns it until CloseStream.
  Stream* OpenStream();
  // Requires that none of its works is waiting.
  void CloseStream(Stream* stream);

  // On an error the work stays the caller's. A stream that has nothing waiting
  // is always let in, whatever its batch's size: one router cannot keep another
  // out, and a batch larger than the queue can run. So is one within its
  // credits, even where others have filled the queue beyond theirs. Errors:
  // RESOURCE_EXHAUSTED when its rows do not fit, UNAVAILABLE after Close.
  absl::Status Add(Stream* stream, ExpertWork* work);

  // Called once for each work given to Add, taken or refused, when its answer
  // is made (not for those that Remove gave back). Returns the rows the stream
  // may have unanswered from now on.
  int64_t Settle(Stream* stream, ExpertWork* work);

  // Takes the waiting works of a stream that is no longer listening; those that
  // run are not among them.
  std::vector<ExpertWork*> Remove(Stream* stream);

  // Blocks until there is work. The stream whose turn it is names the layer, by
  // its oldest batch; then every stream in turn gives its next batch of that
  // layer, round after round, while it fits into `max_rows`. The first batch is
  // taken whatever its size. The turn then passes to the next stream.
  // `out` may hold expired works only. Returns false when closed and empty.
  bool TakeMerged(int64_t max_rows, MergedBatch* out);
  // Likewise, but returns false instead of blocking.
  bool TryTakeMerged(int64_t max_rows, MergedBatch* out);
  // Rows of a merged batch that was taken have been answered.
  void Done(int64_t num_rows);

  // Refuses new work; TakeMerged gives out the rest and then ends.
  void Close();

  int64_t capacity_rows() const { return options_.capacity_rows; }
  int64_t WaitingRows() const;
  // Waiting, and taken and not done.
  int64_t PendingRows() const;
  // Rows that one more stream could have unanswered.
  int64_t NewcomerCredits() const;
  // Works added since the start.
  int64_t TotalWorks() const;

 private:
  bool HasWork();
  void Take(int64_t max_rows, MergedBatch* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeExpired(MergedBatch* out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeLayer(int64_t max_rows, MergedBatch* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool TakeFrom(Stream& stream, int64_t max_rows, MergedBatch* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddWaitingRows(int64_t rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  const Metrics metrics_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::unique_ptr<Stream>> streams_ ABSL_GUARDED_BY(mutex_);
  CreditLedger credits_ ABSL_GUARDED_BY(mutex_);
  size_t turn_ ABSL_GUARDED_BY(mutex_) = 0;  // index into streams_
  int64_t total_works_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_works_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_rows_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t running_rows_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace expertmesh::expert
