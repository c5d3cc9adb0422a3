#include "router_service/engine/step_routing.h"

#include <algorithm>
#include <utility>

namespace expertmesh::router {

StepRouting::StepRouting(int64_t num_layers, int64_t num_experts,
                         std::function<bool(uint64_t id)> is_wanted)
    : num_experts_(num_experts),
      is_wanted_(std::move(is_wanted)),
      overflow_(num_layers),
      rows_(num_layers * num_experts) {}

void StepRouting::Begin(const std::vector<ScheduledChunk>& chunks,
                        int64_t num_tokens) {
  chunks_ = &chunks;
  total_ = RoutingAccount();
  overflow_rows_ = uncovered_rows_ = 0;
  std::fill(overflow_.begin(), overflow_.end(), OverflowCounts{});
  std::fill(rows_.begin(), rows_.end(), 0);
  counts_wanted_ = false;
  sequence_of_.assign(num_tokens, nullptr);
  is_changed_.assign(num_tokens, 0);
  is_crossed_.assign(num_tokens, 0);
  for (const ScheduledChunk& chunk : chunks) {
    Sequence* sequence = chunk.sequence;
    const int64_t known = std::clamp<int64_t>(
        sequence->num_accounted - sequence->num_computed, 0, chunk.num_tokens);
    std::fill_n(sequence_of_.begin() + chunk.first_token + known,
                chunk.num_tokens - known, sequence);
    sequence->num_accounted = std::max(
        sequence->num_accounted, sequence->num_computed + chunk.num_tokens);
    if (!sequence->request.expert_counts) continue;
    counts_wanted_ = true;
    sequence->expert_rows.resize(rows_.size(), 0);
  }
}

void StepRouting::OnLayer(int64_t layer, int64_t first_token,
                          const Routing& routing, const DispatchPlan& plan) {
  Sequence* const* sequence_of = sequence_of_.data() + first_token;
  for (int64_t token = 0; token < routing.num_tokens; ++token) {
    if (sequence_of[token] != nullptr) {
      sequence_of[token]->routing.Add(plan.accounts[token]);
    }
    const RoutingAccount& account = plan.accounts[token];
    total_.Add(account);
    is_changed_[first_token + token] |=
        account[RowOutcome::kRerouted] + account[RowOutcome::kDropped] > 0;
  }
  overflow_rows_ += plan.overflow_rows - plan.uncovered_rows;
  uncovered_rows_ += plan.uncovered_rows;
  for (int reason = 0; reason < kNumOverflowReasons; ++reason) {
    for (int outcome = 0; outcome < kNumRowOutcomes; ++outcome) {
      overflow_[layer][reason][outcome] += plan.overflow[reason][outcome];
    }
  }
  for (const RowGroup& group : plan.groups) {
    const int64_t slot = layer * num_experts_ + group.expert_id;
    rows_[slot] += group.last_row - group.first_row;
    if (!counts_wanted_) continue;
    for (uint32_t row = group.first_row; row < group.last_row; ++row) {
      Sequence* sequence = sequence_of[plan.row_token[row]];
      if (sequence != nullptr && sequence->request.expert_counts)
        ++sequence->expert_rows[slot];
    }
  }
}

void StepRouting::OnCrossed(int64_t token) {
  is_crossed_[token] = 1;
  if (sequence_of_[token] != nullptr) ++sequence_of_[token]->routing.crossed;
}

int64_t StepRouting::NumExact(const ScheduledChunk& chunk) const {
  int64_t count = 0;
  for (; count < chunk.num_tokens; ++count) {
    const int64_t token = chunk.first_token + count;
    if (is_changed_[token]) break;
    if (is_crossed_[token] && !chunk.sequence->may_mix) break;
  }
  return count;
}

bool StepRouting::IsWanted(int64_t token) {
  const auto chunk = std::find_if(
      chunks_->begin(), chunks_->end(), [token](const ScheduledChunk& chunk) {
        return token < chunk.first_token + chunk.num_tokens;
      });
  return is_wanted_(chunk->sequence->id);
}

}  // namespace expertmesh::router
