#pragma once

// Routings from hand-made scores, and plans as short text that a test can
// state in full.

#include <string>
#include <vector>

#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/model/gate.h"

namespace expertmesh::router {

// A gate of the softmax family.
Gate MakeGate(int64_t num_experts, int64_t top_k, bool norm_topk_prob = false);

// Exactly `rows` rows per expert and wave.
CapacityOptions CapacityOf(int64_t rows);

// The gate's own choice over `scores` [num_tokens][num_experts].
Routing MakeRouting(const Gate& gate,
                    const std::vector<std::vector<float>>& scores,
                    const std::vector<OverflowPolicy>& policy);

// "e0:1,2 e3:0 / e0:4": expert 0 gets tokens 1 and 2 and expert 3 token 0 in
// the first wave, expert 0 gets token 4 in the second.
std::string WavesText(const DispatchPlan& plan);

// "0,3 1 -": token 0 is served by experts 0 and 3 in this order, token 1 by
// expert 1, token 2 by nobody. Read through token_rows.
std::string ServedText(const DispatchPlan& plan, int64_t top_k);

// "PP PW D": each token's outcomes, Primary, Replica, Waited, rerouted (to the
// Next best), Dropped, in this order.
std::string OutcomesText(const DispatchPlan& plan);

// Weights of a token's rows in the order of the combine.
std::vector<float> WeightsOf(const DispatchPlan& plan, int64_t top_k,
                             int64_t token);

}  // namespace expertmesh::router
