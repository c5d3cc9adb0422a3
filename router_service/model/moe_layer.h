#pragma once

// One MoE layer: gate, dispatch, combine on one screen (stops 4 to 7).

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "router_service/dispatch/dispatcher.h"
#include "router_service/dispatch/lost_mass_budget.h"
#include "router_service/dispatch/plan_repair.h"
#include "router_service/model/activations.h"
#include "router_service/model/dense_weights.h"
#include "router_service/model/ffn.h"
#include "router_service/model/gate.h"
#include "router_service/model/step_times.h"

namespace expertmesh::router {

// One micro-batch's passage through an MoE layer. Reused from layer to layer.
struct MoeTicket {
  explicit MoeTicket(const DispatcherOptions& options) : dispatch(options) {}

  int64_t layer = 0;
  const LayerWeights* weights = nullptr;
  ActivationView x;
  absl::Span<const uint8_t> may_mix;
  Routing routing;
  std::vector<uint16_t> replicas;  // [num_experts] that take rows
  DispatchPlan plan;
  DispatchTicket dispatch;
};

// Between Begin and Finish the experts work, and the caller is free to run
// something else, such as another micro-batch's attention. One thread.
class MoeLayer {
 public:
  // `dispatcher` and `times` must outlive this.
  MoeLayer(const ModelConfig& config, const CapacityOptions& capacity,
           const ActivationType& type, int64_t max_tokens,
           Dispatcher* dispatcher, StepTimes* times);

  // Before the first layer of a step.
  void BeginStep() { dispatcher_->BeginStep(); }

  // Chooses experts and sends rows to them.
  //   hidden_states  [num_tokens, hidden] f32 normed, valid until Finish
  //   x              the same, as it enters products
  //   policy         [num_tokens]
  //   may_mix, traced  as Dispatcher::Begin has them, valid until Finish
  void Begin(int64_t layer, const LayerWeights& weights,
             const float* hidden_states, const ActivationView& x,
             const std::vector<OverflowPolicy>& policy,
             absl::Span<const uint8_t> may_mix,
             absl::Span<const TracedTokens> traced, WorkerPool& pool,
             MoeTicket* ticket);

  // Runs the shared expert while the others work, then waits for their rows.
  //   y             [num_tokens, hidden] f32, overwritten
  //   token_status  [num_tokens]; the first failure of a token's rows is kept,
  //                 and its y is zero. A token that experts gave values for
  //                 that are not finite is asked for once more, then INTERNAL
  //   is_wanted     whether anybody still waits for a token; asked now and then
  //                 while its rows wait for somebody to serve them
  void Finish(MoeTicket* ticket, float* y,
              absl::Span<absl::Status> token_status,
              absl::FunctionRef<bool(uint32_t token)> is_wanted,
              WorkerPool& pool);

  void set_capacity(const CapacityOptions& capacity) {
    planner_.set_capacity(capacity);
    budget_.set_max_lost(capacity.max_lost_gate_mass);
  }

 private:
  // Rows that nobody served go elsewhere, where their tokens' policies let
  // them.
  void RepairPlan(MoeTicket* ticket, Dispatcher::MustWait must_wait);
  // Adds those of the lost rows that must be served after all, and the rows of
  // sums that stand no more; leaves *wanted ascending.
  void AddRowsToAskFor(MoeTicket* ticket, std::vector<uint32_t>* wanted);
  // Leaves in lost_rows_ those that did not come back and that tokens of such
  // policies are combined from. Returns whether there are any.
  bool FindLostRows(const MoeTicket& ticket);
  void CombineTokens(const MoeTicket& ticket, float* y, WorkerPool& pool);
  // Leaves in bad_tokens_ those with values that are not finite.
  void FindBadTokens(const MoeTicket& ticket);
  void RetryBadTokens(MoeTicket* ticket, Dispatcher::MustWait must_wait,
                      float* y, WorkerPool& pool);
  void AddSharedExpert(const MoeTicket& ticket, float* y, WorkerPool& pool);

  const ModelConfig& config_;
  const Gate gate_;
  DispatchPlanner planner_;
  PlanRepair repair_;
  LostMassBudget budget_;
  Dispatcher* const dispatcher_;
  StepTimes& times_;
  Ffn shared_ffn_;
  Buffer shared_;                // [max_tokens, hidden] f32
  Buffer shared_gate_;           // [max_tokens] f32
  std::vector<uint8_t> is_bad_;  // [num_tokens]
  std::vector<uint32_t> bad_tokens_;
  std::vector<uint32_t> lost_rows_;
  std::vector<uint32_t> summed_rows_;
};

}  // namespace expertmesh::router
