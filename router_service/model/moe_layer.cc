#include "router_service/model/moe_layer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "router_service/dispatch/combine.h"
#include "services/core/clock.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

// Whether the row's token is combined from it.
bool IsCombined(uint32_t row, int64_t top_k, const DispatchPlan& plan) {
  const auto rows = plan.token_rows.begin() + plan.row_token[row] * top_k;
  return std::find(rows, rows + top_k, static_cast<int32_t>(row)) !=
         rows + top_k;
}

}  // namespace

MoeLayer::MoeLayer(const ModelConfig& config, const CapacityOptions& capacity,
                   const ActivationType& type, int64_t max_tokens,
                   Dispatcher* dispatcher, StepTimes* times)
    : config_(config),
      gate_(config),
      planner_(&gate_, capacity),
      repair_(&gate_),
      budget_(capacity.max_lost_gate_mass),
      dispatcher_(dispatcher),
      times_(*times),
      shared_ffn_(type, max_tokens, config.shared_intermediate_size),
      shared_(config.shared_intermediate_size > 0
                  ? max_tokens * config.hidden_size * sizeof(float)
                  : 0),
      shared_gate_(max_tokens * sizeof(float)) {}

void MoeLayer::Begin(int64_t layer, const LayerWeights& weights,
                     const float* hidden_states, const ActivationView& x,
                     const std::vector<OverflowPolicy>& policy,
                     absl::Span<const uint8_t> may_mix,
                     absl::Span<const TracedTokens> traced, WorkerPool& pool,
                     MoeTicket* ticket) {
  const int64_t num_tokens = static_cast<int64_t>(policy.size());
  const int64_t num_experts = config_.num_experts;
  const int64_t top_k = config_.top_k;
  ticket->layer = layer;
  ticket->weights = &weights;
  ticket->x = x;
  ticket->may_mix = may_mix;

  Routing& routing = ticket->routing;
  routing.num_tokens = num_tokens;
  routing.num_experts = num_experts;
  routing.top_k = top_k;
  routing.scores.resize(num_tokens * num_experts);
  routing.topk_ids.resize(num_tokens * top_k);
  routing.topk_weights.resize(num_tokens * top_k);
  routing.policy = policy;
  Gemm(x, num_tokens, weights.gate, routing.scores.data(), num_experts, pool);
  ForRows(pool, num_tokens, [&](int64_t token) {
    const absl::Span<float> scores(&routing.scores[token * num_experts],
                                   num_experts);
    gate_.Score(scores, scores);
    gate_.Choose(scores, {},
                 absl::MakeSpan(&routing.topk_ids[token * top_k], top_k),
                 absl::MakeSpan(&routing.topk_weights[token * top_k], top_k));
  });
  times_.End(StepPhase::kGate);
  dispatcher_->CountReplicas(layer, &ticket->replicas, may_mix);
  const absl::Duration now = Clock::Real()->Now();
  routing.allowance = budget_.Allowance(now);
  planner_.Build(routing, ticket->replicas, &ticket->plan);
  budget_.Add(ticket->plan.accounts, now);
  dispatcher_->Begin(layer, hidden_states, ticket->plan, &ticket->dispatch,
                     may_mix, traced);
  times_.End(StepPhase::kDispatch);
}

void MoeLayer::Finish(MoeTicket* ticket, float* y,
                      absl::Span<absl::Status> token_status,
                      absl::FunctionRef<bool(uint32_t token)> is_wanted,
                      WorkerPool& pool) {
  const int64_t num_tokens = ticket->routing.num_tokens;
  const int64_t hidden = config_.hidden_size;
  if (ticket->weights->shared) {
    shared_ffn_.Run(*ticket->weights->shared, ticket->x, num_tokens,
                    shared_.as<float>(), pool);
    times_.End(StepPhase::kDense);
  }
  const auto must_wait = [&](uint32_t token) {
    return ticket->routing.policy[token] == OverflowPolicy::kWait &&
           token_status[token].ok() && is_wanted(token);
  };
  dispatcher_->Finish(&ticket->dispatch, must_wait);
  if (!ticket->dispatch.failures().empty()) RepairPlan(ticket, must_wait);
  times_.End(StepPhase::kExperts);
  CombineTokens(*ticket, y, pool);
  FindBadTokens(*ticket);
  if (!bad_tokens_.empty()) RetryBadTokens(ticket, must_wait, y, pool);
  if (ticket->weights->shared) AddSharedExpert(*ticket, y, pool);

  for (const uint32_t token : bad_tokens_) {
    std::fill_n(y + token * hidden, hidden, 0.0f);
    token_status[token].Update(absl::InternalError(absl::StrCat(
        "the experts of layer ", ticket->layer,
        " gave values that are not finite, when asked again as well")));
  }
  for (const DispatchTicket::Failure& failure : ticket->dispatch.failures()) {
    if (!IsCombined(failure.row, config_.top_k, ticket->plan)) continue;
    const uint32_t token = ticket->plan.row_token[failure.row];
    std::fill_n(y + token * hidden, hidden, 0.0f);
    token_status[token].Update(failure.status);
  }
}

void MoeLayer::RepairPlan(MoeTicket* ticket, Dispatcher::MustWait must_wait) {
  // Whoever answers for these meanwhile did not when it was needed.
  std::vector<int32_t> lost_experts;
  std::vector<uint32_t> wanted;
  while (FindLostRows(*ticket)) {
    for (const uint32_t row : lost_rows_) {
      lost_experts.push_back(ticket->plan.ExpertOf(row));
    }
    dispatcher_->CountReplicas(ticket->layer, &ticket->replicas,
                               ticket->may_mix);
    for (const int32_t expert : lost_experts) ticket->replicas[expert] = 0;
    // Weights may change: what came back in sums is asked for row by row.
    summed_rows_.clear();
    for (const uint32_t row : lost_rows_) {
      ticket->dispatch.ForgetSums(ticket->plan.row_token[row], &summed_rows_);
    }
    RoutingAccount account;
    account.kept_mass -= repair_.Repair(ticket->routing, ticket->replicas,
                                        lost_rows_, &ticket->plan, &wanted);
    budget_.Add({&account, 1}, Clock::Real()->Now());
    AddRowsToAskFor(ticket, &wanted);
    if (wanted.empty()) return;
    dispatcher_->Retry(wanted, &ticket->dispatch, must_wait,
                       RetryReason::kMissing);
  }
}

void MoeLayer::AddRowsToAskFor(MoeTicket* ticket,
                               std::vector<uint32_t>* wanted) {
  for (const uint32_t row : lost_rows_) {
    if (!IsCombined(row, config_.top_k, ticket->plan) ||
        ticket->replicas[ticket->plan.ExpertOf(row)] > 0) {
      continue;
    }
    // Too few experts are left for its token, which waits after all.
    ticket->routing.policy[ticket->plan.row_token[row]] = OverflowPolicy::kWait;
    wanted->push_back(row);
  }
  for (const uint32_t row : summed_rows_) {
    if (IsCombined(row, config_.top_k, ticket->plan)) wanted->push_back(row);
  }
  std::sort(wanted->begin(), wanted->end());
  wanted->erase(std::unique(wanted->begin(), wanted->end()), wanted->end());
}

bool MoeLayer::FindLostRows(const MoeTicket& ticket) {
  lost_rows_.clear();
  for (const DispatchTicket::Failure& failure : ticket.dispatch.failures()) {
    const uint32_t token = ticket.plan.row_token[failure.row];
    if (absl::IsUnavailable(failure.status) &&
        ticket.routing.policy[token] != OverflowPolicy::kWait &&
        IsCombined(failure.row, config_.top_k, ticket.plan)) {
      lost_rows_.push_back(failure.row);
    }
  }
  return !lost_rows_.empty();
}

void MoeLayer::CombineTokens(const MoeTicket& ticket, float* y,
                             WorkerPool& pool) {
  const int64_t num_tokens = ticket.routing.num_tokens;
  const int64_t hidden = config_.hidden_size;
  is_bad_.resize(num_tokens);
  ForRows(pool, num_tokens, [&](int64_t token) {
    Combine(ticket.plan, config_.top_k, ticket.dispatch.outputs(), hidden,
            token, token + 1, y);
    is_bad_[token] = !AllFinite(y + token * hidden, hidden);
  });
}

void MoeLayer::FindBadTokens(const MoeTicket& ticket) {
  bad_tokens_.clear();
  // Rows that did not come back hold anything.
  for (const DispatchTicket::Failure& failure : ticket.dispatch.failures()) {
    if (!IsCombined(failure.row, config_.top_k, ticket.plan)) continue;
    is_bad_[ticket.plan.row_token[failure.row]] = 0;
  }
  for (int64_t token = 0; token < ticket.routing.num_tokens; ++token) {
    if (is_bad_[token]) bad_tokens_.push_back(static_cast<uint32_t>(token));
  }
}

void MoeLayer::RetryBadTokens(MoeTicket* ticket, Dispatcher::MustWait must_wait,
                              float* y, WorkerPool& pool) {
  std::vector<uint32_t> rows;
  for (const uint32_t token : bad_tokens_) {
    ticket->dispatch.TakeBadRows(token, &rows);
  }
  times_.End(StepPhase::kCombine);
  dispatcher_->Retry(rows, &ticket->dispatch, must_wait);
  times_.End(StepPhase::kExperts);
  CombineTokens(*ticket, y, pool);
  FindBadTokens(*ticket);
}

void MoeLayer::AddSharedExpert(const MoeTicket& ticket, float* y,
                               WorkerPool& pool) {
  const int64_t num_tokens = ticket.routing.num_tokens;
  const int64_t hidden = config_.hidden_size;
  const bool gated = config_.shared_expert_gate;
  float* gate = shared_gate_.as<float>();
  if (gated) {
    Gemm(ticket.x, num_tokens, ticket.weights->shared_gate, gate, 1, pool);
  }
  ForRows(pool, num_tokens, [&](int64_t token) {
    const float scale = gated ? 1.0f / (1.0f + std::exp(-gate[token])) : 1.0f;
    AddScaled(scale, shared_.as<float>() + token * hidden, hidden,
              y + token * hidden);
  });
}

}  // namespace expertmesh::router
