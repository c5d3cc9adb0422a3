#include "router_service/dispatch/batch_attempt.h"

#include <algorithm>
#include <utility>

#include "services/core/clock.h"

namespace expertmesh::router {
namespace {

// In sum_slots: it has been taken out of the answer.
constexpr uint32_t kTaken = 0xffffffffu;

}  // namespace

BatchAttempt* BatchAttempt::Obtain(
    const std::shared_ptr<DispatchState>& state) {
  std::unique_ptr<BatchAttempt> attempt;
  {
    MutexLock lock(&state->mutex);
    if (!state->idle.empty()) {
      attempt = std::move(state->idle.back());
      state->idle.pop_back();
    }
  }
  if (attempt == nullptr) attempt.reset(new BatchAttempt(state));
  attempt->expert_ids.clear();
  attempt->group_offsets.assign(1, 0);
  attempt->row_token.clear();
  attempt->row_weight.clear();
  attempt->row_sum.clear();
  attempt->traceparents.clear();
  attempt->sum_slots.clear();
  attempt->pieces.clear();
  attempt->is_overdue = attempt->is_answered = false;
  attempt->status = absl::OkStatus();
  return attempt.release();
}

void BatchAttempt::Recycle(BatchAttempt* attempt) {
  attempt->exchange = nullptr;
  attempt->batch = ExpertBatch();
  std::unique_ptr<BatchAttempt> owned(attempt);
  if (!attempt->state_->is_closed) {
    attempt->state_->idle.push_back(std::move(owned));
  }
}

void BatchAttempt::Done(const BatchAnswer& answer) {
  const absl::Duration now = Clock::Real()->Now();
  // Kept here: it may hold the last reference to the lock that is held.
  const std::shared_ptr<DispatchState> state = state_;
  bool is_claimed;
  {
    MutexLock lock(&state->mutex);
    Account(answer, now);
    if (exchange == nullptr) {
      // Its endpoint may have been waited for.
      state->Notify();
      std::erase(state->orphans, this);
      Recycle(this);
      return;
    }
    is_claimed = answer.status.ok() && ClaimPieces();
    if (!is_claimed) {
      status = answer.status;
      is_answered = true;
      state->Notify();
      return;
    }
  }
  // The exchange waits for pieces being copied, so its rows stay.
  for (const Claim& claim : claims_) CopyRows(claim, *answer.rows);
  // Notified under the lock: the waiter may be gone as soon as it is open.
  MutexLock lock(&state->mutex);
  FinishPieces();
  is_answered = true;
  state->Notify();
}

void BatchAttempt::Account(const BatchAnswer& answer, absl::Duration now) {
  EndpointLoads& loads = state_->loads;
  taken = now - sent_at;
  is_in_flight = false;
  if (is_overdue) loads.OnceOverdue(endpoint);
  const EndpointLoads::Answer counted = {
      .rows = static_cast<int64_t>(row_token.size()),
      .rows_ahead = rows_ahead,
      .credit_rows = answer.credit_rows,
      // What it took beyond all measure says no more.
      .taken = std::min(taken, 2 * deadline),
      .computed = answer.computed,
  };
  if (answer.status.ok()) {
    loads.OnAnswer(endpoint, counted, now);
  } else {
    loads.OnError(endpoint, counted, answer.status, now);
  }
}

bool BatchAttempt::ClaimPieces() {
  claims_.clear();
  size_t sent = 0;
  size_t answered = 0;
  for (const uint32_t index : pieces) {
    RowPiece& piece = exchange->pieces[index];
    if (piece.state == RowPiece::State::kSent) {
      piece.state = RowPiece::State::kCopying;
      piece.served_by = endpoint;
      claims_.push_back(
          {index, piece.first_row, piece.last_row, sent, answered});
    }
    answered += CountLoneRows(sent, sent + piece.num_rows());
    sent += piece.num_rows();
  }
  return !claims_.empty();
}

size_t BatchAttempt::CountLoneRows(size_t first, size_t last) const {
  if (row_sum.empty()) return last - first;
  return std::count(row_sum.begin() + first, row_sum.begin() + last, kNoSum);
}

void BatchAttempt::CopyRows(const Claim& claim, const AnsweredRows& rows) {
  std::byte* out = exchange->rows + claim.first_row * exchange->row_bytes;
  const size_t num_rows = claim.last_row - claim.first_row;
  size_t answered = claim.first_answered;
  if (row_sum.empty()) return rows.Copy(answered, answered + num_rows, out);
  for (size_t i = 0; i < num_rows; ++i, out += exchange->row_bytes) {
    const uint32_t sum = row_sum[claim.first_sent + i];
    if (sum == kNoSum) {
      rows.Copy(answered, answered + 1, out);
      ++answered;
    } else {
      CopySum(sum, rows);
    }
  }
}

// Pieces that others have answered meanwhile may have rows in the sum, too: it
// is of all of them, and combine prefers it. No other attempt brings the same
// one: it would have to have all those pieces as well, and answered first, it
// would have left none of them to claim.
void BatchAttempt::CopySum(uint32_t sum, const AnsweredRows& rows) {
  const uint32_t slot = std::exchange(sum_slots[sum], kTaken);
  if (slot == kTaken) return;
  rows.CopySum(sum, exchange->sums->data(slot));
  exchange->sums->SetHere(slot, endpoint);
}

void BatchAttempt::FinishPieces() {
  for (const Claim& claim : claims_) {
    exchange->pieces[claim.piece].state = RowPiece::State::kDone;
  }
  exchange->unfinished -= claims_.size();
}

}  // namespace expertmesh::router
