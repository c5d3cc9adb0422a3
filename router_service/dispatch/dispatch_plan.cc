#include "router_service/dispatch/dispatch_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

namespace expertmesh::router {
namespace {

constexpr int32_t kNobody = -1;
constexpr uint32_t kUndecided = std::numeric_limits<uint32_t>::max();

// NaN ranks below every number: sorting needs a total order.
float Rank(float score) {
  return std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
}

// Higher score first; of equal scores the earlier row.
constexpr auto kBetterRow = [](const auto& a, const auto& b) {
  return a.score != b.score ? a.score > b.score : a.slot < b.slot;
};

}  // namespace

DispatchPlanner::DispatchPlanner(const Gate* gate,
                                 const CapacityOptions& capacity)
    : gate_(gate), capacity_options_(capacity) {}

void DispatchPlanner::Build(const Routing& routing,
                            absl::Span<const uint16_t> replicas,
                            DispatchPlan* plan) {
  SetRooms(routing, replicas);
  CountDemand(routing, plan);
  if (plan->overflow_rows > 0) {
    RankOverfull(routing);
    ApplyPolicies(routing);
    AssignWaves();
  }
  EmitFirstWave(routing, plan);
  EmitLateWaves(routing, plan);
  Account(routing, plan);
}

void DispatchPlanner::SetRooms(const Routing& routing,
                               absl::Span<const uint16_t> replicas) {
  capacity_ = ExpertCapacity(capacity_options_, routing.num_tokens,
                             routing.top_k, routing.num_experts);
  room_.assign(routing.num_experts, capacity_);
  for (size_t expert = 0; expert < replicas.size(); ++expert) {
    // No plan has more rows than fit into 32 bits.
    const int64_t each = std::min<int64_t>(capacity_, int64_t{1} << 32);
    if (replicas[expert] != 1) room_[expert] = each * replicas[expert];
  }
}

// Leaves in serving_ the gate's choice and in load_ each expert's demand.
void DispatchPlanner::CountDemand(const Routing& routing, DispatchPlan* plan) {
  const size_t num_slots = routing.num_tokens * routing.top_k;
  serving_.resize(num_slots);
  load_.assign(routing.num_experts, 0);
  for (size_t slot = 0; slot < num_slots; ++slot) {
    const int32_t expert = routing.topk_ids[slot];
    serving_[slot] = {expert, routing.topk_weights[slot], /*wave=*/0,
                      /*is_extra=*/false};
    ++load_[expert];
  }
  plan->overflow_rows = 0;
  plan->uncovered_rows = 0;
  plan->max_expert_rows = 0;
  for (size_t expert = 0; expert < load_.size(); ++expert) {
    const int64_t rows = load_[expert];
    if (room_[expert] == 0) plan->uncovered_rows += rows;
    plan->overflow_rows +=
        std::max<int64_t>(rows - std::min(capacity_, room_[expert]), 0);
    plan->max_expert_rows = std::max(plan->max_expert_rows, rows);
  }
}

// Marks as kUndecided the rows that their experts do not keep. Leaves in load_
// the rows that are kept, all of the first wave.
void DispatchPlanner::RankOverfull(const Routing& routing) {
  overfull_.clear();
  cursor_.assign(routing.num_experts, -1);
  full_.resize(routing.num_experts);
  size_t num_ranked = 0;
  for (int32_t expert = 0; expert < routing.num_experts; ++expert) {
    const int64_t demand = load_[expert];
    full_[expert] = demand >= room_[expert];
    if (demand <= std::min(capacity_, room_[expert])) continue;
    overfull_.push_back({expert, num_ranked, num_ranked + demand});
    cursor_[expert] = num_ranked;
    num_ranked += demand;
    load_[expert] = std::min(demand, room_[expert]);
  }
  ranked_.resize(num_ranked);
  for (uint32_t slot = 0; slot < serving_.size(); ++slot) {
    const int32_t expert = serving_[slot].expert;
    if (cursor_[expert] < 0) continue;
    const size_t token = slot / routing.top_k;
    const float score = routing.scores[token * routing.num_experts + expert];
    ranked_[cursor_[expert]++] = {Rank(score), slot};
  }
  for (const OverfullExpert& e : overfull_) {
    const auto first = ranked_.begin() + e.first;
    const auto last = ranked_.begin() + e.last;
    const auto kept = first + load_[e.expert];
    const auto primary = first + std::min(load_[e.expert], capacity_);
    if (kept != last) std::nth_element(first, kept, last, kBetterRow);
    if (primary != kept) std::nth_element(first, primary, kept, kBetterRow);
    for (auto row = primary; row != kept; ++row) {
      serving_[row->slot].is_extra = true;
    }
    for (auto row = kept; row != last; ++row) {
      serving_[row->slot].wave = kUndecided;
    }
  }
}

void DispatchPlanner::ApplyPolicies(const Routing& routing) {
  for (int64_t token = 0; token < routing.num_tokens; ++token) {
    const OverflowPolicy policy = routing.PolicyOf(token);
    if (policy == OverflowPolicy::kWait) continue;
    const auto first = serving_.begin() + token * routing.top_k;
    if (std::none_of(first, first + routing.top_k,
                     [](const Serving& s) { return s.wave == kUndecided; })) {
      continue;
    }
    if (policy == OverflowPolicy::kDrop) {
      Drop(routing, token);
    } else {
      ChooseAgain(routing, token);
    }
  }
}

void DispatchPlanner::Drop(const Routing& routing, int64_t token) {
  for (int64_t place = 0; place < routing.top_k; ++place) {
    Serving& serving = serving_[token * routing.top_k + place];
    if (serving.wave == kUndecided)
      serving = {kNobody, 0.0f, /*wave=*/0, false};
  }
}

void DispatchPlanner::ChooseAgain(const Routing& routing, int64_t token) {
  const int64_t top_k = routing.top_k;
  const absl::Span<Serving> places =
      absl::MakeSpan(serving_).subspan(token * top_k, top_k);
  for (const Serving& held : places) {
    if (held.wave == 0) full_[held.expert] = 0;
  }
  chosen_ids_.resize(top_k);
  chosen_weights_.resize(top_k);
  const int64_t found = gate_->Choose(
      absl::MakeConstSpan(routing.scores)
          .subspan(token * routing.num_experts, routing.num_experts),
      full_, absl::MakeSpan(chosen_ids_), absl::MakeSpan(chosen_weights_));
  if (found == top_k) {
    for (int64_t place = 0; place < top_k; ++place) {
      if (places[place].wave == 0) --load_[places[place].expert];
      ++load_[chosen_ids_[place]];
      places[place] = {chosen_ids_[place], chosen_weights_[place], /*wave=*/0,
                       /*is_extra=*/false};
    }
  }
  const auto refresh = [this](int32_t expert) {
    full_[expert] = load_[expert] >= room_[expert];
  };
  for (const Serving& serving : places) refresh(serving.expert);
  for (int64_t place = 0; place < top_k; ++place) {
    refresh(routing.topk_ids[token * top_k + place]);
  }
}

// Rows still undecided wait: they queue behind the first wave of their expert,
// or fill what the policies of other tokens left free in it.
void DispatchPlanner::AssignWaves() {
  for (const OverfullExpert& e : overfull_) {
    // Without anybody to serve it, as if one did: rows wait for that one.
    const int64_t room = room_[e.expert] > 0 ? room_[e.expert] : capacity_;
    const auto last = ranked_.begin() + e.last;
    const auto first = ranked_.begin() + e.first +
                       std::min<int64_t>(room_[e.expert], e.last - e.first);
    std::sort(first, last, kBetterRow);
    for (auto row = first; row != last; ++row) {
      Serving& serving = serving_[row->slot];
      if (serving.wave != kUndecided) continue;
      serving.wave = static_cast<uint32_t>(load_[e.expert]++ / room);
    }
  }
}

// The first wave by one counting sort; rows of later waves go to late_.
void DispatchPlanner::EmitFirstWave(const Routing& routing,
                                    DispatchPlan* plan) {
  cursor_.assign(routing.num_experts, 0);
  for (const Serving& serving : serving_) {
    if (serving.expert != kNobody && serving.wave == 0) {
      ++cursor_[serving.expert];
    }
  }
  plan->groups.clear();
  uint32_t num_rows = 0;
  for (int32_t expert = 0; expert < routing.num_experts; ++expert) {
    const uint32_t first_row = num_rows;
    num_rows += static_cast<uint32_t>(cursor_[expert]);
    cursor_[expert] = first_row;
    if (num_rows > first_row) {
      plan->groups.push_back({expert, first_row, num_rows});
    }
  }
  plan->wave_groups.assign(1, 0);
  if (num_rows > 0) {
    plan->wave_groups.push_back(static_cast<uint32_t>(plan->groups.size()));
  }

  late_.clear();
  plan->row_token.resize(num_rows);
  plan->row_weight.resize(num_rows);
  plan->token_rows.assign(serving_.size(), -1);
  for (uint32_t token = 0; token < routing.num_tokens; ++token) {
    const Serving* const places = serving_.data() + token * routing.top_k;
    int32_t* const rows = plan->token_rows.data() + token * routing.top_k;
    uint32_t served = 0;
    for (int64_t place = 0; place < routing.top_k; ++place) {
      const Serving& serving = places[place];
      if (serving.expert == kNobody) continue;
      if (serving.wave == 0) {
        const int64_t row = cursor_[serving.expert]++;
        plan->row_token[row] = token;
        plan->row_weight[row] = serving.weight;
        rows[served] = static_cast<int32_t>(row);
      } else {
        late_.push_back(
            {serving.wave, serving.expert, token, served, serving.weight});
      }
      ++served;
    }
  }
}

void DispatchPlanner::EmitLateWaves(const Routing& routing,
                                    DispatchPlan* plan) {
  std::sort(late_.begin(), late_.end(), [](const LateRow& a, const LateRow& b) {
    return std::tie(a.wave, a.expert, a.token) <
           std::tie(b.wave, b.expert, b.token);
  });
  for (size_t i = 0; i < late_.size(); ++i) {
    const LateRow& late = late_[i];
    const auto row = static_cast<uint32_t>(plan->row_token.size());
    const bool new_wave = i == 0 || late_[i - 1].wave != late.wave;
    if (new_wave || late_[i - 1].expert != late.expert) {
      if (new_wave && i > 0) {
        plan->wave_groups.push_back(static_cast<uint32_t>(plan->groups.size()));
      }
      plan->groups.push_back({late.expert, row, row});
    }
    ++plan->groups.back().last_row;
    plan->row_token.push_back(late.token);
    plan->row_weight.push_back(late.weight);
    plan->token_rows[late.token * routing.top_k + late.place] =
        static_cast<int32_t>(row);
  }
  if (!late_.empty()) {
    plan->wave_groups.push_back(static_cast<uint32_t>(plan->groups.size()));
  }
}

// Why a token's rows overflow, should any.
OverflowReason DispatchPlanner::ReasonOf(const Routing& routing,
                                         int64_t token) const {
  for (int64_t place = 0; place < routing.top_k; ++place) {
    if (room_[routing.topk_ids[token * routing.top_k + place]] == 0) {
      return OverflowReason::kUncovered;
    }
  }
  return routing.policy[token] != routing.PolicyOf(token)
             ? OverflowReason::kBudget
             : OverflowReason::kCapacity;
}

void DispatchPlanner::Account(const Routing& routing,
                              DispatchPlan* plan) const {
  plan->accounts.assign(routing.num_tokens, RoutingAccount{});
  plan->overflow = {};
  for (int64_t token = 0; token < routing.num_tokens; ++token) {
    RoutingAccount& account = plan->accounts[token];
    const float* const scores =
        routing.scores.data() + token * routing.num_experts;
    const int32_t* const first_choice =
        routing.topk_ids.data() + token * routing.top_k;
    const Serving* const places = serving_.data() + token * routing.top_k;
    const auto reason = static_cast<int>(ReasonOf(routing, token));
    const auto count = [&](RowOutcome outcome) {
      ++account.rows[static_cast<int>(outcome)];
      if (outcome == RowOutcome::kPrimary) return;
      ++plan->overflow[reason][static_cast<int>(outcome)];
    };
    for (int64_t place = 0; place < routing.top_k; ++place) {
      account.original_mass += scores[first_choice[place]];
      const Serving& serving = places[place];
      if (serving.expert == kNobody) {
        count(RowOutcome::kDropped);
        continue;
      }
      account.kept_mass += scores[serving.expert];
      if (serving.wave > 0) {
        count(RowOutcome::kWaited);
      } else if (std::find(first_choice, first_choice + routing.top_k,
                           serving.expert) != first_choice + routing.top_k) {
        count(serving.is_extra ? RowOutcome::kReplica : RowOutcome::kPrimary);
      } else {
        count(RowOutcome::kRerouted);
      }
    }
  }
}

}  // namespace expertmesh::router
