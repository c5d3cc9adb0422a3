#include "router_service/dispatch/batch_attempt.h"

#include <algorithm>

#include "services/core/clock.h"

namespace expertmesh::router {

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
  for (const Claim& claim : claims_) {
    answer.rows->Copy(claim.first_answered,
                      claim.first_answered + claim.last_row - claim.first_row,
                      exchange->rows + claim.first_row * exchange->row_bytes);
  }
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
  size_t answered = 0;
  for (const uint32_t index : pieces) {
    RowPiece& piece = exchange->pieces[index];
    if (piece.state == RowPiece::State::kSent) {
      piece.state = RowPiece::State::kCopying;
      piece.served_by = endpoint;
      claims_.push_back({index, piece.first_row, piece.last_row, answered});
    }
    answered += piece.num_rows();
  }
  return !claims_.empty();
}

void BatchAttempt::FinishPieces() {
  for (const Claim& claim : claims_) {
    exchange->pieces[claim.piece].state = RowPiece::State::kDone;
  }
  exchange->unfinished -= claims_.size();
}

}  // namespace expertmesh::router
