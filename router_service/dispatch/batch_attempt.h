#pragma once

// One try to have some rows of a layer computed at one endpoint.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router_service/dispatch/endpoint_loads.h"
#include "router_service/dispatch/partial_sums.h"
#include "router_service/transport/expert_transport.h"
#include "services/core/mutex.h"

namespace expertmesh::router {

class BatchAttempt;

// Consecutive rows of a plan for one expert: what is sent, answered, and sent
// again, as one. Several attempts may carry it at a time; the first answer
// counts.
struct RowPiece {
  enum class State : uint8_t {
    kUnsent,
    kSent,     // at least one attempt carries it
    kCopying,  // an answer is being copied; others come too late
    kDone,
    kFailed,
  };
  int32_t expert_id = 0;
  uint32_t first_row = 0;
  uint32_t last_row = 0;  // one past the end
  State state = State::kUnsent;
  uint8_t faults = 0;    // answers that were errors of an endpoint's own
  uint8_t attempts = 0;  // that carry it now
  int served_by = -1;    // the endpoint whose answer counted
  int bad_from = -1;     // the endpoint that gave values that are not finite
  // Refused together with others: it goes in a message of its own.
  bool is_alone = false;
  // Its rows may go to endpoints of any numerics_id.
  bool may_mix = false;
  // No endpoint could take it, however much room there were.
  bool is_uncovered = false;
  absl::Duration first_sent = absl::ZeroDuration();
  // Endpoints not to be asked: they carry it, or do not host it.
  absl::InlinedVector<int, 2> avoid;
  absl::Status error;  // the last one

  int64_t num_rows() const { return last_row - first_row; }
};

// One wave of one layer on its way. Guarded by DispatchState::mutex once sent.
struct RowExchange {
  std::vector<RowPiece> pieces;
  size_t unfinished = 0;                // pieces neither done nor failed
  std::vector<BatchAttempt*> attempts;  // sent for it, answered or not
  std::byte* rows = nullptr;            // of the plan, in its order
  size_t row_bytes = 0;
  PartialSums* sums = nullptr;
  bool may_sum = false;  // rows may be asked for in sums
};

// What the dispatcher shares with attempts, which may outlive it: an endpoint
// that hangs answers late or never.
struct DispatchState {
  Mutex mutex;
  CondVar changed;
  uint64_t events ABSL_GUARDED_BY(mutex) = 0;  // answers, new placements
  EndpointLoads loads ABSL_GUARDED_BY(mutex);
  std::vector<std::unique_ptr<BatchAttempt>> idle ABSL_GUARDED_BY(mutex);
  // In flight for nobody.
  std::vector<BatchAttempt*> orphans ABSL_GUARDED_BY(mutex);
  bool is_closed ABSL_GUARDED_BY(mutex) = false;

  void Notify() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    ++events;
    changed.NotifyAll();
  }
};

// Made by Obtain, given back by Recycle; between Send and Done it belongs to
// the transport. The dispatcher fills it in before Send and reads it under the
// state's lock afterwards.
class BatchAttempt final : public BatchCompletion {
 public:
  static BatchAttempt* Obtain(const std::shared_ptr<DispatchState>& state);
  // The answer is in, or it was never sent. Frees it where the dispatcher is
  // gone.
  static void Recycle(BatchAttempt* attempt)
      ABSL_NO_THREAD_SAFETY_ANALYSIS;  // under state->mutex

  void Done(const BatchAnswer& answer) override;

  int endpoint = 0;
  ExpertBatch batch;
  std::vector<uint32_t> expert_ids;
  std::vector<uint32_t> group_offsets;
  std::vector<uint32_t> row_token;
  std::vector<float> row_weight;
  std::vector<uint32_t> row_sum;
  std::vector<std::string> traceparents;
  std::vector<uint32_t> sum_slots;  // [num_sums] of the exchange's sums
  std::vector<uint32_t> pieces;     // of the exchange, in the order of the rows

  absl::Duration sent_at;
  absl::Duration hedge_at;    // when another replica may be asked, too
  absl::Duration overdue_at;  // when it must be
  absl::Duration predicted;
  absl::Duration deadline;  // from sent_at to overdue_at, at first
  int64_t rows_ahead = 0;
  bool is_overdue = false;

  // Null: nobody waits for it any more.
  RowExchange* exchange = nullptr;
  // Its endpoint answered, or never will; then, its rows are copied as well.
  bool is_in_flight = false;
  bool is_answered = false;
  absl::Status status;
  absl::Duration taken;

 private:
  explicit BatchAttempt(std::shared_ptr<DispatchState> state)
      : state_(std::move(state)) {}
  void Account(const BatchAnswer& answer, absl::Duration now);
  struct Claim {
    uint32_t piece;
    uint32_t first_row, last_row;  // of the plan
    size_t first_sent;             // of the batch
    size_t first_answered;         // of the rows that came alone
  };
  bool ClaimPieces();
  // Of rows [first, last) of the batch.
  size_t CountLoneRows(size_t first, size_t last) const;
  void CopyRows(const Claim& claim, const AnsweredRows& rows);
  void CopySum(uint32_t sum, const AnsweredRows& rows);
  void FinishPieces();

  const std::shared_ptr<DispatchState> state_;
  std::vector<Claim> claims_;
};

}  // namespace expertmesh::router
