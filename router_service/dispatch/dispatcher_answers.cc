// Dispatcher: what comes back, and what does not.

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "router_service/dispatch/dispatch_times.h"
#include "router_service/dispatch/dispatcher.h"
#include "services/core/clock.h"

namespace expertmesh::router {
namespace {

// How long an endpoint that nobody can stand in for may keep such rows.
constexpr absl::Duration kLongMoment = absl::Seconds(1);
// Errors of endpoints' own after which rows are given up.
constexpr int kMostFaults = 2;

void Count(prometheus::Counter* counter) {
  if (counter != nullptr) counter->Increment();
}

// To clients, whatever goes wrong in the mesh is not their fault.
absl::Status AsFault(const absl::Status& status) {
  return absl::IsInternal(status) ? status
                                  : absl::UnavailableError(status.message());
}

absl::Status Unserved(const RowPiece& piece, int64_t layer) {
  return absl::UnavailableError(absl::StrCat("no expert service serves expert ",
                                             piece.expert_id, " of layer ",
                                             layer, " now; try again"));
}

// Whether any token of the piece has to wait for it.
bool MustWaitFor(const RowPiece& piece, const DispatchPlan& plan,
                 Dispatcher::MustWait must_wait) {
  const auto tokens = plan.row_token.begin();
  return std::any_of(tokens + piece.first_row, tokens + piece.last_row,
                     must_wait);
}

}  // namespace

void Dispatcher::TakeAnswered(DispatchTicket* ticket) {
  std::vector<BatchAttempt*>& attempts = ticket->exchange_.attempts;
  size_t left = 0;
  for (BatchAttempt* attempt : attempts) {
    if (attempt->is_answered) {
      TakeBack(attempt, ticket);
      BatchAttempt::Recycle(attempt);
    } else {
      attempts[left++] = attempt;
    }
  }
  attempts.resize(left);
}

void Dispatcher::TakeBack(BatchAttempt* attempt, DispatchTicket* ticket) {
  const absl::Status& status = attempt->status;
  if (status.ok()) hedging_.Observe(attempt->predicted, attempt->taken);
  bool is_resent = false;
  // Of several experts it is not told which is not hosted.
  const bool is_refused_alone =
      absl::IsFailedPrecondition(status) && attempt->expert_ids.size() == 1;
  if (is_refused_alone) OnNotHosted(*attempt, ticket->source_.layer);
  for (const uint32_t index : attempt->pieces) {
    RowPiece& piece = ticket->exchange_.pieces[index];
    --piece.attempts;
    if (status.ok() || piece.state != RowPiece::State::kSent) continue;
    piece.error = status;
    piece.faults += absl::IsInternal(status) ? 1 : 0;
    piece.is_alone |= absl::IsFailedPrecondition(status) && !is_refused_alone;
    if (!is_refused_alone) {
      piece.avoid.erase(std::remove(piece.avoid.begin(), piece.avoid.end(),
                                    attempt->endpoint),
                        piece.avoid.end());
    }
    if (piece.attempts > 0) {
      AttendAgain(index, ticket);
      continue;
    }
    if (IsLost(piece, *attempt, ticket)) {
      FailPiece(index, status, ticket);
    } else {
      piece.state = RowPiece::State::kUnsent;
      ticket->unsent_.push_back(index);
      is_resent = true;
    }
  }
  if (!is_resent) return;
  const bool is_refusal =
      absl::IsFailedPrecondition(status) || absl::IsResourceExhausted(status);
  Count(is_refusal ? metrics_.resent_refused : metrics_.resent_error);
}

void Dispatcher::AttendAgain(uint32_t index, DispatchTicket* ticket) {
  for (BatchAttempt* attempt : ticket->exchange_.attempts) {
    const std::vector<uint32_t>& pieces = attempt->pieces;
    if (attempt->is_in_flight && attempt->is_overdue &&
        std::find(pieces.begin(), pieces.end(), index) != pieces.end()) {
      attempt->overdue_at = absl::ZeroDuration();
    }
  }
}

bool Dispatcher::IsLost(const RowPiece& piece, const BatchAttempt& attempt,
                        DispatchTicket* ticket) {
  BeginChoice();
  const bool any_usable = state_->loads.AnyUsable(
      placement_->replicas(ticket->source_.layer, piece.expert_id), {});
  if (piece.faults >= kMostFaults && !any_usable) return true;
  if (!absl::IsDeadlineExceeded(attempt.status) ||
      attempt.taken < options_.uncovered_timeout) {
    return false;
  }
  // It had all the time there is, unless somebody else can be asked.
  if (any_usable) return false;
  uncovered_left_ = absl::ZeroDuration();
  return true;
}

void Dispatcher::Abandon(DispatchTicket* ticket) {
  std::vector<BatchAttempt*>& attempts = ticket->exchange_.attempts;
  for (BatchAttempt* attempt : attempts) {
    attempt->exchange = nullptr;
    state_->orphans.push_back(attempt);
  }
  attempts.clear();
}

absl::Duration Dispatcher::AttendLate(absl::Duration now,
                                      DispatchTicket* ticket,
                                      MustWait must_wait) {
  absl::Duration next = absl::InfiniteDuration();
  late_.clear();
  {
    MutexLock lock(&state_->mutex);
    for (BatchAttempt* attempt : ticket->exchange_.attempts) {
      if (!attempt->is_in_flight) continue;
      const absl::Duration due =
          std::min(attempt->hedge_at, attempt->overdue_at);
      if (due <= now) {
        late_.push_back(attempt);
        // Looked at again, should it not be answered until then.
        next = std::min(next, now + options_.min_deadline);
      } else {
        next = std::min(next, due);
      }
    }
  }
  for (BatchAttempt* attempt : late_) {
    if (attempt->overdue_at <= now) {
      AttendOverdue(attempt, now, ticket, must_wait);
    } else {
      attempt->hedge_at = absl::InfiniteDuration();
      next = std::min(next, attempt->overdue_at);
      if (hedging_.HasBudget() &&
          AskOthers(attempt, /*is_hedge=*/true, ticket)) {
        hedging_.OnHedge();
        Count(metrics_.hedged);
      }
    }
  }
  return next;
}

void Dispatcher::AttendOverdue(BatchAttempt* attempt, absl::Duration now,
                               DispatchTicket* ticket, MustWait must_wait) {
  if (AskOthers(attempt, /*is_hedge=*/false, ticket)) {
    Count(metrics_.resent_overdue);
  }
  MutexLock lock(&state_->mutex);
  if (!attempt->is_in_flight) return;
  bool is_waited_for = false;
  bool is_sole = false;
  for (const uint32_t index : attempt->pieces) {
    const RowPiece& piece = ticket->exchange_.pieces[index];
    if (piece.state != RowPiece::State::kSent ||
        IsExpectedElsewhere(index, *attempt, *ticket)) {
      continue;
    }
    is_sole |= piece.attempts == 1;
    if (now - piece.first_sent >= kLongMoment &&
        !MustWaitFor(piece, *ticket->source_.plan, must_wait)) {
      FailPiece(index, Unserved(piece, ticket->source_.layer), ticket);
    } else {
      is_waited_for = true;
    }
  }
  attempt->hedge_at = absl::InfiniteDuration();
  attempt->overdue_at =
      is_waited_for ? now + options_.min_deadline : absl::InfiniteDuration();
  // Who alone has rows that are waited for may be asked for others, too.
  if (attempt->is_overdue || (is_waited_for && is_sole)) return;
  attempt->is_overdue = true;
  state_->loads.OnOverdue(attempt->endpoint);
}

bool Dispatcher::IsExpectedElsewhere(uint32_t index,
                                     const BatchAttempt& attempt,
                                     const DispatchTicket& ticket) {
  if (ticket.exchange_.pieces[index].attempts == 1) return false;
  const auto& attempts = ticket.exchange_.attempts;
  return std::any_of(
      attempts.begin(), attempts.end(), [&](const BatchAttempt* other) {
        return other != &attempt && other->is_in_flight && !other->is_overdue &&
               std::find(other->pieces.begin(), other->pieces.end(), index) !=
                   other->pieces.end();
      });
}

bool Dispatcher::AskOthers(BatchAttempt* late, bool is_hedge,
                           DispatchTicket* ticket) {
  wanted_.clear();
  {
    MutexLock lock(&state_->mutex);
    // Nobody is asked for rows that have had all the time there is.
    const absl::Duration too_old =
        Clock::Real()->Now() - kFirstDeadline - options_.uncovered_timeout;
    for (const uint32_t index : late->pieces) {
      const RowPiece& piece = ticket->exchange_.pieces[index];
      if (piece.state == RowPiece::State::kSent && piece.first_sent > too_old) {
        wanted_.push_back(index);
      }
    }
  }
  LookUpPlacement();
  Choose(wanted_, is_hedge, ticket);
  const bool any = std::any_of(chosen_.begin(), chosen_.end(),
                               [](const auto& c) { return !c.empty(); });
  SendChosen(ticket);
  return any;
}

bool Dispatcher::AnyUncovered(const DispatchTicket& ticket) {
  // Others only wait for room, which answers make.
  return std::any_of(ticket.unsent_.begin(), ticket.unsent_.end(),
                     [&](uint32_t index) {
                       return ticket.exchange_.pieces[index].is_uncovered;
                     });
}

bool Dispatcher::IsWorthWaiting(const DispatchTicket& ticket,
                                MustWait must_wait) const {
  if (uncovered_left_ <= absl::ZeroDuration()) return false;
  if (options_.uncovered_timeout - uncovered_left_ < kMoment) return true;
  return std::any_of(
      ticket.unsent_.begin(), ticket.unsent_.end(), [&](uint32_t index) {
        const RowPiece& piece = ticket.exchange_.pieces[index];
        return piece.is_uncovered &&
               MustWaitFor(piece, *ticket.source_.plan, must_wait);
      });
}

void Dispatcher::FailUncovered(DispatchTicket* ticket) {
  MutexLock lock(&state_->mutex);
  size_t left = 0;
  for (const uint32_t index : ticket->unsent_) {
    const RowPiece& piece = ticket->exchange_.pieces[index];
    if (!piece.is_uncovered) {
      ticket->unsent_[left++] = index;
      continue;
    }
    absl::Status status = piece.error;
    if (status.ok()) {
      status = Unserved(piece, ticket->source_.layer);
    } else if (piece.faults < kMostFaults) {
      // It was to be asked for once more, and there was nobody to ask.
      status = absl::UnavailableError(status.message());
    }
    FailPiece(index, status, ticket);
  }
  ticket->unsent_.resize(left);
}

void Dispatcher::FailPiece(uint32_t index, const absl::Status& status,
                           DispatchTicket* ticket) {
  RowPiece& piece = ticket->exchange_.pieces[index];
  piece.state = RowPiece::State::kFailed;
  --ticket->exchange_.unfinished;
  const absl::Status fault = AsFault(status);
  for (uint32_t row = piece.first_row; row < piece.last_row; ++row) {
    ticket->failures_.push_back({row, fault});
  }
}

}  // namespace expertmesh::router
