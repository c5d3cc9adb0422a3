#include "router_service/dispatch/plan_repair.h"

#include <algorithm>

namespace expertmesh::router {

double PlanRepair::Repair(const Routing& routing,
                          absl::Span<const uint16_t> replicas,
                          absl::Span<const uint32_t> lost, DispatchPlan* plan,
                          std::vector<uint32_t>* wanted) {
  const uint32_t first_wave = plan->wave_groups[1];
  first_late_row_ = first_wave > 0 ? plan->groups[first_wave - 1].last_row : 0;
  is_lost_.assign(plan->row_token.size(), 0);
  for (const uint32_t row : lost) is_lost_[row] = 1;
  masked_.resize(replicas.size());
  for (size_t expert = 0; expert < replicas.size(); ++expert) {
    masked_[expert] = replicas[expert] == 0;
  }
  moves_.clear();
  double lost_mass = 0;
  for (int64_t token = 0; token < routing.num_tokens; ++token) {
    if (routing.policy[token] == OverflowPolicy::kWait) continue;
    if (!Collect(routing, *plan, token)) continue;
    const double kept_before = plan->accounts[token].kept_mass;
    if (routing.policy[token] == OverflowPolicy::kDrop) {
      Drop(routing, token, plan);
    } else if (!ChooseAgain(routing, token, plan)) {
      continue;
    }
    const auto num_lost =
        std::count_if(held_.begin(), held_.end(),
                      [](const Held& held) { return held.is_lost; });
    plan->overflow_rows += num_lost;
    plan->uncovered_rows += num_lost;
    lost_mass += kept_before - plan->accounts[token].kept_mass;
  }
  std::sort(moves_.begin(), moves_.end(),
            [](const Move& a, const Move& b) { return a.row < b.row; });
  Regroup(plan);
  wanted->clear();
  for (const Move& move : moves_) {
    if (move.expert != kNobody) wanted->push_back(move.row);
  }
  return lost_mass;
}

bool PlanRepair::Collect(const Routing& routing, const DispatchPlan& plan,
                         int64_t token) {
  held_.clear();
  bool any_lost = false;
  for (int64_t place = 0; place < routing.top_k; ++place) {
    const int32_t row = plan.token_rows[token * routing.top_k + place];
    if (row < 0) break;
    const bool is_lost = is_lost_[row] != 0;
    any_lost |= is_lost;
    held_.push_back({static_cast<uint32_t>(row), plan.ExpertOf(row), is_lost});
  }
  return any_lost;
}

void PlanRepair::Drop(const Routing& routing, int64_t token,
                      DispatchPlan* plan) {
  int32_t* rows = plan->token_rows.data() + token * routing.top_k;
  std::fill_n(rows, routing.top_k, -1);
  for (const Held& held : held_) {
    if (held.is_lost) {
      MoveRow(routing, token, held, kNobody, plan);
    } else {
      *rows++ = static_cast<int32_t>(held.row);
    }
  }
}

bool PlanRepair::ChooseAgain(const Routing& routing, int64_t token,
                             DispatchPlan* plan) {
  const int64_t top_k = routing.top_k;
  chosen_ids_.resize(top_k);
  chosen_weights_.resize(top_k);
  // What is back may be kept, whoever serves its expert now.
  own_masked_ = masked_;
  for (const Held& held : held_) {
    if (!held.is_lost) own_masked_[held.expert] = 0;
  }
  const auto scores =
      absl::MakeConstSpan(routing.scores)
          .subspan(token * routing.num_experts, routing.num_experts);
  if (gate_->Choose(scores, own_masked_, absl::MakeSpan(chosen_ids_),
                    absl::MakeSpan(chosen_weights_)) < top_k) {
    return false;
  }
  const auto is_chosen = [this](const Held& held) {
    return !held.is_lost && std::binary_search(chosen_ids_.begin(),
                                               chosen_ids_.end(), held.expert);
  };
  free_.clear();
  for (const Held& held : held_) {
    if (!is_chosen(held)) free_.push_back(held);
  }
  for (int64_t place = 0; place < top_k; ++place) {
    const int32_t expert = chosen_ids_[place];
    const auto kept =
        std::find_if(held_.begin(), held_.end(), [&](const Held& held) {
          return !held.is_lost && held.expert == expert;
        });
    uint32_t row;
    if (kept != held_.end()) {
      row = kept->row;
    } else {
      row = free_.back().row;
      MoveRow(routing, token, free_.back(), expert, plan);
      free_.pop_back();
    }
    plan->row_weight[row] = chosen_weights_[place];
    plan->token_rows[token * top_k + place] = static_cast<int32_t>(row);
  }
  return true;
}

void PlanRepair::MoveRow(const Routing& routing, int64_t token,
                         const Held& held, int32_t expert, DispatchPlan* plan) {
  moves_.push_back({held.row, expert});
  const auto first_choice = absl::MakeConstSpan(routing.topk_ids)
                                .subspan(token * routing.top_k, routing.top_k);
  const auto is_first_choice = [&](int32_t id) {
    return std::find(first_choice.begin(), first_choice.end(), id) !=
           first_choice.end();
  };
  const float* const scores =
      routing.scores.data() + token * routing.num_experts;
  RoutingAccount& account = plan->accounts[token];
  const RowOutcome before =
      !is_first_choice(held.expert)       ? RowOutcome::kRerouted
      : held.row >= first_late_row_       ? RowOutcome::kWaited
      : account[RowOutcome::kPrimary] > 0 ? RowOutcome::kPrimary
      : account[RowOutcome::kReplica] > 0 ? RowOutcome::kReplica
                                          : RowOutcome::kWaited;  // by repair
  const RowOutcome after = expert == kNobody         ? RowOutcome::kDropped
                           : is_first_choice(expert) ? RowOutcome::kWaited
                                                     : RowOutcome::kRerouted;
  --account.rows[static_cast<int>(before)];
  ++account.rows[static_cast<int>(after)];
  account.kept_mass -= scores[held.expert];
  if (expert != kNobody) account.kept_mass += scores[expert];
  constexpr auto kUncovered = static_cast<int>(OverflowReason::kUncovered);
  ++plan->overflow[kUncovered][static_cast<int>(after)];
}

void PlanRepair::Regroup(DispatchPlan* plan) {
  groups_.clear();
  auto move = moves_.begin();
  size_t group = 0;
  for (size_t wave = 1; wave < plan->wave_groups.size(); ++wave) {
    for (; group < plan->wave_groups[wave]; ++group) {
      RowGroup left = plan->groups[group];
      for (; move != moves_.end() && move->row < left.last_row; ++move) {
        if (move->row > left.first_row) {
          groups_.push_back({left.expert_id, left.first_row, move->row});
        }
        left.first_row = move->row + 1;
        if (move->expert == kNobody) continue;
        groups_.push_back({move->expert, move->row, left.first_row});
      }
      if (left.first_row < left.last_row) groups_.push_back(left);
    }
    plan->wave_groups[wave] = static_cast<uint32_t>(groups_.size());
  }
  plan->groups.swap(groups_);
}

}  // namespace expertmesh::router
