#include "router_service/dispatch/dispatcher.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "router_service/dispatch/dispatch_times.h"
#include "services/core/clock.h"
#include "services/core/log.h"
#include "services/linalg/activation_row.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

// Larger groups are cut, so that replicas share them and credit is kept to.
constexpr uint32_t kPieceRows = 16;
// How often rows that nobody serves are offered again, beside whenever an
// answer or a new placement comes.
constexpr absl::Duration kOfferAgain = absl::Milliseconds(20);

bool AnyMayMix(absl::Span<const uint8_t> may_mix) {
  return std::find(may_mix.begin(), may_mix.end(), 1) != may_mix.end();
}

}  // namespace

DispatchTicket::DispatchTicket(const DispatcherOptions& options)
    : wire_dtype_(options.wire_dtype),
      top_k_(options.top_k),
      hidden_size_(options.hidden_size),
      rows_(options.max_tokens * options.top_k *
            RowBytes(options.wire_dtype, options.hidden_size)),
      groups_(options.combine_group_size),
      sums_({.wire_dtype = options.wire_dtype,
             .group_size = options.combine_group_size,
             .max_tokens = options.max_tokens,
             .top_k = options.top_k,
             .hidden_size = options.hidden_size}) {
  exchange_.rows = rows_.data();
  exchange_.row_bytes = RowBytes(options.wire_dtype, options.hidden_size);
}

template <typename Visit>
void DispatchTicket::ForGroups(uint32_t token, const Visit& visit) {
  const int32_t* const rows = source_.plan->token_rows.data() + token * top_k_;
  int64_t end;
  for (int64_t place = 0; place < top_k_ && rows[place] >= 0; place = end) {
    end = groups_.EndOfGroup(rows, top_k_, place);
    visit(sums_.Find(token, place, end), place, rows + place, rows + end);
  }
}

void DispatchTicket::ForgetSums(uint32_t token, std::vector<uint32_t>* rows) {
  ForGroups(token, [&](const float* sum, int64_t place, const int32_t* first,
                       const int32_t* last) {
    if (sum == nullptr) return;
    sums_.Forget(token, place);
    rows->insert(rows->end(), first, last);
  });
}

void DispatchTicket::TakeBadRows(uint32_t token, std::vector<uint32_t>* rows) {
  ForGroups(token, [&](const float* sum, int64_t place, const int32_t* first,
                       const int32_t* last) {
    if (sum != nullptr) {
      if (AllFinite(sum, hidden_size_)) return;
      // Another endpoint may have been the one to answer some of the rows.
      const int endpoint = sums_.Endpoint(token, place);
      for (const int32_t* row = first; row != last; ++row) {
        const auto bad = static_cast<uint32_t>(*row);
        served_.push_back({bad, bad + 1, endpoint});
      }
      sums_.Forget(token, place);
      rows->insert(rows->end(), first, last);
      return;
    }
    // The good ones stay: another replica may be the one that gives bad ones.
    std::copy_if(first, last, std::back_inserter(*rows), [&](int32_t row) {
      return !IsFiniteRow(rows_.data() + row * exchange_.row_bytes, wire_dtype_,
                          hidden_size_);
    });
  });
}

Dispatcher::Dispatcher(const DispatcherOptions& options, PlacementTable* table,
                       ExpertTransport* transport,
                       const DispatchMetrics& metrics)
    : options_(options),
      table_(table),
      transport_(transport),
      metrics_(metrics),
      state_(std::make_shared<DispatchState>()),
      builder_({.wire_dtype = options.wire_dtype,
                .hidden_size = options.hidden_size,
                .max_tokens = options.max_tokens,
                .top_k = options.top_k,
                .max_message_bytes = options.max_message_bytes}),
      hedging_(options.hedge_budget),
      uncovered_left_(options.uncovered_timeout),
      cross_left_(options.cross_after) {
  table_->OnChange([state = state_.get()] {
    MutexLock lock(&state->mutex);
    state->Notify();
  });
}

Dispatcher::~Dispatcher() {
  table_->OnChange(nullptr);
  MutexLock lock(&state_->mutex);
  state_->is_closed = true;
  state_->idle.clear();
}

void Dispatcher::Begin(int64_t layer, const float* hidden_states,
                       const DispatchPlan& plan, DispatchTicket* ticket,
                       absl::Span<const uint8_t> may_mix,
                       absl::Span<const TracedTokens> traced) {
  ticket->source_ = {static_cast<uint32_t>(layer),
                     hidden_states,
                     &plan,
                     &ticket->groups_,
                     &ticket->sums_,
                     traced};
  ticket->may_mix_ = AnyMayMix(may_mix) ? may_mix : absl::Span<const uint8_t>();
  ticket->crossed_tokens_.clear();
  ticket->groups_.Reset(plan);
  ticket->sums_.Clear();
  ticket->exchange_.sums = &ticket->sums_;
  ticket->exchange_.may_sum = !ticket->sums_.IsNeverSmaller();
  ticket->failures_.clear();
  ticket->served_.clear();
  if (plan.num_waves() > 0) BeginWave(0, ticket);
}

void Dispatcher::CountReplicas(int64_t layer, std::vector<uint16_t>* replicas,
                               absl::Span<const uint8_t> may_mix) {
  const bool mixes = AnyMayMix(may_mix);
  LookUpPlacement();
  replicas->resize(placement_->num_experts());
  MutexLock lock(&state_->mutex);
  BeginChoice();
  for (int64_t expert = 0; expert < placement_->num_experts(); ++expert) {
    uint16_t& count = (*replicas)[expert];
    count =
        mixes ? 0
              : state_->loads.CountUsable(placement_->preferred(layer, expert));
    if (count > 0) continue;
    count = state_->loads.CountUsable(placement_->replicas(layer, expert));
  }
}

void Dispatcher::LookUpPlacement() {
  std::shared_ptr<const Placement> latest = table_->Get();
  if (latest == published_) return;
  placement_ = published_ = std::move(latest);
  published_at_ = Clock::Real()->Now();
  MutexLock lock(&state_->mutex);
  for (const auto& [endpoint, rows] : placement_->first_credits()) {
    state_->loads.SetFirstCredit(endpoint, rows);
  }
  for (const auto& [endpoint, weight] : placement_->weights()) {
    state_->loads.SetWeight(endpoint, weight);
  }
}

void Dispatcher::OnNotHosted(const BatchAttempt& attempt, int64_t layer) {
  // What it announced since then may hold again.
  if (attempt.sent_at < published_at_) return;
  static LogRateLimit limit({.per_second = 1, .burst = 10});
  Log(limit, LogLevel::kInfo, "an expert service lacks what it announced",
      {{"error", attempt.status.message()}});
  auto corrected = std::make_shared<Placement>(*placement_);
  corrected->Remove(layer, attempt.expert_ids[0], attempt.endpoint);
  placement_ = std::move(corrected);
}

void Dispatcher::Finish(DispatchTicket* ticket, MustWait must_wait) {
  const int64_t num_waves = ticket->source_.plan->num_waves();
  for (int64_t wave = 0; wave < num_waves; ++wave) {
    if (wave > 0) BeginWave(wave, ticket);
    FinishWave(ticket, must_wait);
  }
}

void Dispatcher::BeginWave(int64_t wave, DispatchTicket* ticket) {
  const DispatchPlan& plan = *ticket->source_.plan;
  RowExchange& exchange = ticket->exchange_;
  exchange.pieces.clear();
  for (uint32_t g = plan.wave_groups[wave]; g < plan.wave_groups[wave + 1];
       ++g) {
    const RowGroup& group = plan.groups[g];
    for (uint32_t row = group.first_row; row < group.last_row;) {
      uint32_t end = std::min(group.last_row, row + kPieceRows);
      if (!ticket->may_mix_.empty()) {
        // Rows that may mix and rows that may not go in pieces of their own.
        const bool may_mix = ticket->MayMix(plan.row_token[row]);
        uint32_t same = row + 1;
        while (same < end && ticket->MayMix(plan.row_token[same]) == may_mix) {
          ++same;
        }
        end = same;
      }
      AddPiece(group.expert_id, row, end, ticket);
      row = end;
    }
  }
  SendUnsent(ticket);
}

void Dispatcher::AddPiece(int32_t expert_id, uint32_t first_row,
                          uint32_t last_row, DispatchTicket* ticket) {
  RowExchange& exchange = ticket->exchange_;
  ticket->unsent_.push_back(static_cast<uint32_t>(exchange.pieces.size()));
  RowPiece& piece = exchange.pieces.emplace_back();
  piece.expert_id = expert_id;
  piece.first_row = first_row;
  piece.last_row = last_row;
  piece.may_mix = ticket->MayMix(ticket->source_.plan->row_token[first_row]);
  ++exchange.unfinished;
}

void Dispatcher::Retry(absl::Span<const uint32_t> rows, DispatchTicket* ticket,
                       MustWait must_wait, RetryReason reason) {
  const DispatchPlan& plan = *ticket->source_.plan;
  std::vector<uint32_t> sorted(rows.begin(), rows.end());
  std::sort(sorted.begin(), sorted.end());
  std::erase_if(ticket->failures_, [&](const DispatchTicket::Failure& failure) {
    return std::binary_search(sorted.begin(), sorted.end(), failure.row);
  });
  // Some have other experts now.
  ticket->groups_.Reset(plan);
  ticket->exchange_.may_sum = false;
  ticket->exchange_.pieces.clear();
  for (const uint32_t row : rows) {
    AddPiece(plan.ExpertOf(row), row, row + 1, ticket);
    if (reason == RetryReason::kMissing) continue;
    for (const DispatchTicket::Served& served : ticket->served_) {
      if (served.first_row <= row && row < served.last_row) {
        ticket->exchange_.pieces.back().bad_from = served.endpoint;
      }
    }
  }
  SendUnsent(ticket);
  FinishWave(ticket, must_wait);
}

void Dispatcher::FinishWave(DispatchTicket* ticket, MustWait must_wait) {
  uint64_t seen_events;
  for (;;) {
    {
      MutexLock lock(&state_->mutex);
      TakeAnswered(ticket);
      seen_events = state_->events;
      if (ticket->exchange_.unfinished == 0) {
        Abandon(ticket);
        for (const RowPiece& piece : ticket->exchange_.pieces) {
          ticket->served_.push_back(
              {piece.first_row, piece.last_row, piece.served_by});
        }
        return;
      }
    }
    is_held_back_ = false;
    SendUnsent(ticket);
    const absl::Duration now = Clock::Real()->Now();
    absl::Duration wake = AttendLate(now, ticket, must_wait);
    const bool is_uncovered = AnyUncovered(*ticket);
    if (is_uncovered && !IsWorthWaiting(*ticket, must_wait)) {
      FailUncovered(ticket);
      continue;
    }
    if (!ticket->unsent_.empty()) wake = std::min(wake, now + kOfferAgain);
    if (is_uncovered) wake = std::min(wake, now + uncovered_left_);
    if (is_uncovered || is_held_back_) {
      MutexLock lock(&state_->mutex);
      wake = std::min(wake, state_->loads.NextReopening(now));
    }
    AwaitEvent(seen_events, wake);
    const absl::Duration waited = Clock::Real()->Now() - now;
    if (is_uncovered) uncovered_left_ -= waited;
    if (is_held_back_) cross_left_ -= waited;
  }
}

void Dispatcher::AwaitEvent(uint64_t seen_events, absl::Duration wake) {
  const bool is_due =
      transport_->AwaitBriefly([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        if (Clock::Real()->Now() >= wake) return true;
        MutexLock lock(&state_->mutex);
        return state_->events != seen_events;
      });
  if (is_due) return;
  MutexLock lock(&state_->mutex);
  state_->changed.WaitFor(lock, wake - Clock::Real()->Now(),
                          [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                            return state_->events != seen_events;
                          });
}

// --- Sending. --------------------------------------------------------------

void Dispatcher::SendUnsent(DispatchTicket* ticket) {
  if (ticket->unsent_.empty()) return;
  LookUpPlacement();
  wanted_.swap(ticket->unsent_);
  ticket->unsent_.clear();
  Choose(wanted_, /*is_hedge=*/false, ticket);
  for (const uint32_t index : ticket->unsent_) {
    // Who did not host it a while ago may do so when it is offered again.
    ticket->exchange_.pieces[index].avoid.clear();
  }
  SendChosen(ticket);
}

void Dispatcher::BeginChoice() {
  const absl::Duration now = Clock::Real()->Now();
  for (BatchAttempt* orphan : state_->orphans) {
    if (!orphan->is_overdue && now >= orphan->overdue_at) {
      orphan->is_overdue = true;
      state_->loads.OnOverdue(orphan->endpoint);
    }
  }
  state_->loads.BeginChoice(now);
}

void Dispatcher::Choose(absl::Span<const uint32_t> wanted, bool is_hedge,
                        DispatchTicket* ticket) {
  for (std::vector<uint32_t>& chosen : chosen_) chosen.clear();
  MutexLock lock(&state_->mutex);
  BeginChoice();
  for (const uint32_t index : wanted) {
    RowPiece& piece = ticket->exchange_.pieces[index];
    const int endpoint = ChooseReplica(piece, ticket->source_.layer, is_hedge);
    if (endpoint == EndpointLoads::kNobody) {
      if (piece.state == RowPiece::State::kUnsent) {
        ticket->unsent_.push_back(index);
        piece.is_uncovered = !state_->loads.AnyUsable(
            placement_->replicas(ticket->source_.layer, piece.expert_id),
            Avoided(piece, ticket->source_.layer));
      }
      continue;
    }
    if (chosen_.size() <= static_cast<size_t>(endpoint)) {
      chosen_.resize(endpoint + 1);
    }
    chosen_[endpoint].push_back(index);
  }
  if (!is_hedge) EvenOut(ticket);
}

void Dispatcher::EvenOut(DispatchTicket* ticket) {
  EndpointLoads& loads = state_->loads;
  for (size_t moves = 0; moves < ticket->exchange_.pieces.size();) {
    const int last = loads.Last();
    if (last == EndpointLoads::kNobody) return;
    std::vector<uint32_t>& pieces = chosen_[last];
    EndpointLoads::Relief best;
    size_t given = 0;
    for (size_t i = 0; i < pieces.size(); ++i) {
      const RowPiece& piece = ticket->exchange_.pieces[pieces[i]];
      if (piece.bad_from >= 0) continue;
      const EndpointLoads::Relief relief =
          loads.FindRelief(last, Candidates(piece, ticket->source_.layer),
                           piece.avoid, piece.num_rows());
      if (relief.back >= best.back) continue;
      best = relief;
      given = i;
    }
    if (best.endpoint == EndpointLoads::kNobody) {
      loads.SetUnrelievable(last);
      continue;
    }
    ++moves;
    const uint32_t index = pieces[given];
    loads.MoveSetAside(last, best.endpoint,
                       ticket->exchange_.pieces[index].num_rows());
    pieces.erase(pieces.begin() + given);
    if (chosen_.size() <= static_cast<size_t>(best.endpoint)) {
      chosen_.resize(best.endpoint + 1);
    }
    chosen_[best.endpoint].push_back(index);
  }
}

absl::Span<const int> Dispatcher::Candidates(const RowPiece& piece,
                                             int64_t layer) const {
  return piece.may_mix ? placement_->replicas(layer, piece.expert_id)
                       : placement_->preferred(layer, piece.expert_id);
}

absl::InlinedVector<int, 4> Dispatcher::Avoided(const RowPiece& piece,
                                                int64_t layer) const {
  absl::InlinedVector<int, 4> avoid(piece.avoid.begin(), piece.avoid.end());
  if (piece.bad_from >= 0) {
    auto candidates = Candidates(piece, layer);
    if (candidates.empty()) {
      candidates = placement_->replicas(layer, piece.expert_id);
    }
    const bool has_other =
        std::any_of(candidates.begin(), candidates.end(), [&](int endpoint) {
          return endpoint != piece.bad_from && !state_->loads.IsStuck(endpoint);
        });
    if (has_other) avoid.push_back(piece.bad_from);
  }
  return avoid;
}

int Dispatcher::ChooseReplica(const RowPiece& piece, int64_t layer,
                              bool is_hedge) {
  EndpointLoads& loads = state_->loads;
  const auto candidates = Candidates(piece, layer);
  const auto avoid = Avoided(piece, layer);
  // A hedge is no need.
  if (is_hedge || loads.AnyUsable(candidates, avoid)) {
    return loads.Choose(candidates, avoid, piece.num_rows(), !is_hedge);
  }
  if (!piece.may_mix && !candidates.empty() &&
      cross_left_ > absl::ZeroDuration()) {
    const int own = loads.Choose(candidates, avoid, piece.num_rows());
    is_held_back_ |= own == EndpointLoads::kNobody;
    return own;
  }
  return loads.Choose(placement_->replicas(layer, piece.expert_id), avoid,
                      piece.num_rows());
}

void Dispatcher::SendChosen(DispatchTicket* ticket) {
  const std::vector<RowPiece>& pieces = ticket->exchange_.pieces;
  for (size_t endpoint = 0; endpoint < chosen_.size(); ++endpoint) {
    std::vector<uint32_t>& chosen = chosen_[endpoint];
    const auto alone =
        std::partition(chosen.begin(), chosen.end(),
                       [&](uint32_t index) { return !pieces[index].is_alone; });
    const auto num_together = static_cast<size_t>(alone - chosen.begin());
    SendTo(static_cast<int>(endpoint),
           absl::MakeConstSpan(chosen).first(num_together), ticket);
    for (size_t i = num_together; i < chosen.size(); ++i) {
      SendTo(static_cast<int>(endpoint),
             absl::MakeConstSpan(chosen).subspan(i, 1), ticket);
    }
  }
}

void Dispatcher::SendTo(int endpoint, absl::Span<const uint32_t> pieces,
                        DispatchTicket* ticket) {
  if (pieces.empty()) return;
  builder_.Begin(ticket->source_, pieces, &ticket->exchange_.pieces);
  const bool may_sum =
      ticket->exchange_.may_sum && placement_->adds_rows(endpoint);
  while (BatchAttempt* attempt = NextAttempt(endpoint, ticket)) {
    builder_.FillBatch(may_sum, attempt);
    hedging_.OnSend();
    transport_->Send(attempt->endpoint, attempt->batch, attempt);
  }
}

BatchAttempt* Dispatcher::NextAttempt(int endpoint, DispatchTicket* ticket) {
  BatchAttempt* attempt = BatchAttempt::Obtain(state_);
  RowExchange& exchange = ticket->exchange_;
  MutexLock lock(&state_->mutex);
  const size_t num_pieces = exchange.pieces.size();
  if (!builder_.Next(attempt)) {
    BatchAttempt::Recycle(attempt);
    return nullptr;
  }
  exchange.unfinished += exchange.pieces.size() - num_pieces;
  const absl::Duration now = Clock::Real()->Now();
  bool has_alternatives = true;
  for (const uint32_t index : attempt->pieces) {
    RowPiece& piece = exchange.pieces[index];
    // One that is asked for twice may have been answered meanwhile.
    if (piece.state == RowPiece::State::kUnsent) {
      piece.state = RowPiece::State::kSent;
    }
    ++piece.attempts;
    if (piece.first_sent == absl::ZeroDuration()) piece.first_sent = now;
    piece.avoid.push_back(endpoint);
    const int64_t layer = ticket->source_.layer;
    const auto candidates = Candidates(piece, layer);
    const bool may_cross =
        candidates.empty() || cross_left_ <= absl::ZeroDuration();
    has_alternatives &= state_->loads.AnyUsable(
        may_cross ? placement_->replicas(layer, piece.expert_id) : candidates,
        Avoided(piece, layer));
    CountCrossed(piece, endpoint, ticket);
  }
  exchange.attempts.push_back(attempt);
  attempt->exchange = &exchange;
  attempt->is_in_flight = true;
  attempt->endpoint = endpoint;
  SetTimes(attempt, has_alternatives);
  return attempt;
}

void Dispatcher::CountCrossed(const RowPiece& piece, int endpoint,
                              DispatchTicket* ticket) {
  const auto own =
      placement_->preferred(ticket->source_.layer, piece.expert_id);
  if (std::find(own.begin(), own.end(), endpoint) != own.end()) return;
  num_crossed_rows_ += piece.num_rows();
  if (metrics_.crossed_rows != nullptr) {
    metrics_.crossed_rows->Increment(static_cast<double>(piece.num_rows()));
  }
  const auto tokens = ticket->source_.plan->row_token.begin();
  ticket->crossed_tokens_.insert(ticket->crossed_tokens_.end(),
                                 tokens + piece.first_row,
                                 tokens + piece.last_row);
}

void Dispatcher::SetTimes(BatchAttempt* attempt, bool has_alternatives) {
  EndpointLoads& loads = state_->loads;
  const int endpoint = attempt->endpoint;
  loads.OnSend(endpoint, static_cast<int64_t>(attempt->row_token.size()));
  attempt->rows_ahead = loads.inflight_rows(endpoint);
  attempt->predicted = loads.Predict(endpoint, attempt->rows_ahead);
  attempt->sent_at = Clock::Real()->Now();
  absl::Duration deadline = kFirstDeadline;
  attempt->hedge_at = absl::InfiniteDuration();
  if (loads.IsSettled(endpoint)) {
    deadline = std::max(options_.min_deadline,
                        attempt->predicted * options_.deadline_factor);
    attempt->hedge_at = attempt->sent_at + hedging_.Delay(attempt->predicted);
  }
  attempt->deadline = deadline;
  attempt->overdue_at = attempt->sent_at + deadline;
  attempt->batch.timeout = deadline + options_.uncovered_timeout;
  // Where nobody else can do it, better late than never.
  attempt->batch.deadline =
      has_alternatives ? deadline : attempt->batch.timeout;
}

}  // namespace expertmesh::router
