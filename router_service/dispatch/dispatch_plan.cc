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

// What an expert counts for in gate mass.
double MassOf(const Routing& routing, int64_t token, int32_t expert) {
  const float score = routing.scores[token * routing.num_experts + expert];
  return std::isnan(score) ? 0.0 : score;
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
  FindContenders(routing);
  SetAllowance(routing);
  for (const Contender& contender : contenders_) {
    const auto places = absl::MakeSpan(serving_).subspan(
        contender.token * routing.top_k, routing.top_k);
    if (contender.is_covered && allowance_ <= 0) {
      HoldBack(places);
    } else if (routing.policy[contender.token] == OverflowPolicy::kDrop) {
      Drop(routing, contender, places);
    } else {
      ChooseAgain(routing, contender, places);
    }
  }
}

void DispatchPlanner::HoldBack(absl::Span<Serving> places) {
  for (Serving& serving : places) {
    serving.is_held_back = serving.wave == kUndecided;
  }
}

void DispatchPlanner::FindContenders(const Routing& routing) {
  contenders_.clear();
  for (uint32_t token = 0; token < routing.num_tokens; ++token) {
    if (routing.policy[token] == OverflowPolicy::kWait) continue;
    const Serving* const places = serving_.data() + token * routing.top_k;
    Contender contender = {/*is_covered=*/true, /*stake=*/0, token};
    bool overflows = false;
    for (int64_t place = 0; place < routing.top_k; ++place) {
      if (places[place].wave != kUndecided) continue;
      overflows = true;
      contender.stake += MassOf(routing, token, places[place].expert);
      contender.is_covered &= room_[places[place].expert] > 0;
    }
    if (overflows) contenders_.push_back(contender);
  }
  std::sort(contenders_.begin(), contenders_.end(),
            [](const Contender& a, const Contender& b) {
              return std::tie(a.is_covered, a.stake, a.token) <
                     std::tie(b.is_covered, b.stake, b.token);
            });
}

void DispatchPlanner::SetAllowance(const Routing& routing) {
  allowance_ = routing.allowance.mass;
  if (!(routing.allowance.share > 0)) return;
  double original = 0;
  for (size_t slot = 0; slot < serving_.size(); ++slot) {
    original += MassOf(routing, slot / routing.top_k, routing.topk_ids[slot]);
  }
  allowance_ += routing.allowance.share * original;
}

bool DispatchPlanner::Spend(double loss, bool is_covered) {
  if (is_covered && (allowance_ <= 0 || loss > allowance_)) return false;
  allowance_ -= loss;
  return true;
}

void DispatchPlanner::Drop(const Routing& routing, const Contender& contender,
                           absl::Span<Serving> places) {
  for (Serving& serving : places) {
    if (serving.wave != kUndecided) continue;
    const double loss = MassOf(routing, contender.token, serving.expert);
    if (Spend(loss, room_[serving.expert] > 0)) {
      serving = {kNobody, 0.0f, /*wave=*/0, /*is_extra=*/false};
    } else {
      serving.is_held_back = true;
    }
  }
}

void DispatchPlanner::ChooseAgain(const Routing& routing,
                                  const Contender& contender,
                                  absl::Span<Serving> places) {
  const int64_t top_k = routing.top_k;
  const int64_t token = contender.token;
  for (const Serving& held : places) {
    if (held.wave == 0) full_[held.expert] = 0;
  }
  chosen_ids_.resize(top_k);
  chosen_weights_.resize(top_k);
  const int64_t found = gate_->Choose(
      absl::MakeConstSpan(routing.scores)
          .subspan(token * routing.num_experts, routing.num_experts),
      full_, absl::MakeSpan(chosen_ids_), absl::MakeSpan(chosen_weights_));
  double loss = 0;
  for (int64_t place = 0; place < found; ++place) {
    loss += MassOf(routing, token, places[place].expert) -
            MassOf(routing, token, chosen_ids_[place]);
  }
  if (found == top_k && Spend(loss, contender.is_covered)) {
    for (int64_t place = 0; place < top_k; ++place) {
      Serving& serving = places[place];
      if (serving.wave == 0) --load_[serving.expert];
      ++load_[chosen_ids_[place]];
      serving = {chosen_ids_[place], chosen_weights_[place], /*wave=*/0,
                 /*is_extra=*/false};
    }
  } else if (found == top_k) {
    HoldBack(places);
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

RowOutcome DispatchPlanner::OutcomeOf(const Serving& serving,
                                      absl::Span<const int32_t> first_choice) {
  if (serving.expert == kNobody) return RowOutcome::kDropped;
  if (serving.wave > 0) return RowOutcome::kWaited;
  if (std::find(first_choice.begin(), first_choice.end(), serving.expert) ==
      first_choice.end()) {
    return RowOutcome::kRerouted;
  }
  return serving.is_extra ? RowOutcome::kReplica : RowOutcome::kPrimary;
}

void DispatchPlanner::Account(const Routing& routing,
                              DispatchPlan* plan) const {
  plan->accounts.assign(routing.num_tokens, RoutingAccount{});
  plan->overflow = {};
  for (int64_t token = 0; token < routing.num_tokens; ++token) {
    RoutingAccount& account = plan->accounts[token];
    const float* const scores =
        routing.scores.data() + token * routing.num_experts;
    const auto first_choice =
        absl::MakeConstSpan(routing.topk_ids)
            .subspan(token * routing.top_k, routing.top_k);
    const bool is_covered =
        std::all_of(first_choice.begin(), first_choice.end(),
                    [this](int32_t expert) { return room_[expert] > 0; });
    for (int64_t place = 0; place < routing.top_k; ++place) {
      const Serving& serving = serving_[token * routing.top_k + place];
      const RowOutcome outcome = OutcomeOf(serving, first_choice);
      ++account.rows[static_cast<int>(outcome)];
      account.original_mass += scores[first_choice[place]];
      if (serving.expert != kNobody)
        account.kept_mass += scores[serving.expert];
      if (outcome == RowOutcome::kPrimary) continue;
      const OverflowReason reason = !is_covered ? OverflowReason::kUncovered
                                    : serving.is_held_back
                                        ? OverflowReason::kBudget
                                        : OverflowReason::kCapacity;
      ++plan->overflow[static_cast<int>(reason)][static_cast<int>(outcome)];
    }
  }
}

}  // namespace expertmesh::router
