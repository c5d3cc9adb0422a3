#include "tests/unit/router_service/dispatch/plan_text.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace expertmesh::router {
namespace {

int32_t ExpertOfRow(const DispatchPlan& plan, uint32_t row) {
  for (const RowGroup& group : plan.groups) {
    if (group.first_row <= row && row < group.last_row) return group.expert_id;
  }
  return -1;
}

}  // namespace

Gate MakeGate(int64_t num_experts, int64_t top_k, bool norm_topk_prob) {
  ModelConfig config;
  config.num_experts = num_experts;
  config.top_k = top_k;
  config.norm_topk_prob = norm_topk_prob;
  return Gate(config);
}

CapacityOptions CapacityOf(int64_t rows) {
  return {.capacity_factor = 1e-9, .min_capacity = rows};
}

Routing MakeRouting(const Gate& gate,
                    const std::vector<std::vector<float>>& scores,
                    const std::vector<OverflowPolicy>& policy) {
  Routing routing;
  routing.num_tokens = static_cast<int64_t>(scores.size());
  routing.num_experts = gate.num_experts();
  routing.top_k = gate.top_k();
  routing.policy = policy;
  for (const std::vector<float>& token : scores) {
    std::vector<int32_t> ids(gate.top_k());
    std::vector<float> weights(gate.top_k());
    gate.Choose(token, {}, absl::MakeSpan(ids), absl::MakeSpan(weights));
    routing.scores.insert(routing.scores.end(), token.begin(), token.end());
    routing.topk_ids.insert(routing.topk_ids.end(), ids.begin(), ids.end());
    routing.topk_weights.insert(routing.topk_weights.end(), weights.begin(),
                                weights.end());
  }
  return routing;
}

std::string WavesText(const DispatchPlan& plan) {
  std::vector<std::string> waves;
  for (int64_t wave = 0; wave < plan.num_waves(); ++wave) {
    std::vector<std::string> groups;
    for (uint32_t g = plan.wave_groups[wave]; g < plan.wave_groups[wave + 1];
         ++g) {
      const RowGroup& group = plan.groups[g];
      groups.push_back(absl::StrCat(
          "e", group.expert_id, ":",
          absl::StrJoin(plan.row_token.begin() + group.first_row,
                        plan.row_token.begin() + group.last_row, ",")));
    }
    waves.push_back(absl::StrJoin(groups, " "));
  }
  return absl::StrJoin(waves, " / ");
}

std::string ServedText(const DispatchPlan& plan, int64_t top_k) {
  std::vector<std::string> tokens;
  for (size_t slot = 0; slot < plan.token_rows.size(); slot += top_k) {
    std::vector<int32_t> experts;
    for (int64_t place = 0; place < top_k; ++place) {
      const int32_t row = plan.token_rows[slot + place];
      if (row >= 0) experts.push_back(ExpertOfRow(plan, row));
    }
    tokens.push_back(experts.empty() ? "-" : absl::StrJoin(experts, ","));
  }
  return absl::StrJoin(tokens, " ");
}

std::string OutcomesText(const DispatchPlan& plan) {
  constexpr absl::string_view kLetters = "PRWND";
  std::vector<std::string> tokens;
  for (const RoutingAccount& account : plan.accounts) {
    std::string letters;
    for (int i = 0; i < kNumRowOutcomes; ++i) {
      letters.append(account.rows[i], kLetters[i]);
    }
    tokens.push_back(letters);
  }
  return absl::StrJoin(tokens, " ");
}

std::vector<float> WeightsOf(const DispatchPlan& plan, int64_t top_k,
                             int64_t token) {
  std::vector<float> weights;
  for (int64_t place = 0; place < top_k; ++place) {
    const int32_t row = plan.token_rows[token * top_k + place];
    if (row >= 0) weights.push_back(plan.row_weight[row]);
  }
  return weights;
}

}  // namespace expertmesh::router
