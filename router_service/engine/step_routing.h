#pragma once

// Books what became of a step's rows: per request, per expert, in all.

#include <cstdint>
#include <functional>
#include <vector>

#include "router_service/engine/expert_load.h"
#include "router_service/engine/scheduler.h"
#include "router_service/model/transformer.h"

namespace expertmesh::router {

// One step at a time: Begin, then OnLayer for every MoE layer. Afterwards the
// sequences of the step carry their accounts. One thread.
class StepRouting final : public RoutingObserver {
 public:
  //   is_wanted  whether a sequence of the step has not been cancelled since it
  //              began, by id
  StepRouting(int64_t num_layers, int64_t num_experts,
              std::function<bool(uint64_t id)> is_wanted);

  // `chunks` must stay valid until the last OnLayer.
  void Begin(const std::vector<ScheduledChunk>& chunks, int64_t num_tokens);
  void OnLayer(int64_t layer, int64_t first_token, const Routing& routing,
               const DispatchPlan& plan) override;
  void OnCrossed(int64_t token) override;
  bool IsWanted(int64_t token) override;

  // How many of a chunk's tokens, the first, were routed as the gate chose, by
  // services of the mesh's numerics_id unless the sequence may mix.
  int64_t NumExact(const ScheduledChunk& chunk) const;

  // Of the whole step.
  const RoutingAccount& total() const { return total_; }
  // Assignments that found their expert full, and those that found it
  // uncovered.
  int64_t overflow_rows() const { return overflow_rows_; }
  int64_t uncovered_rows() const { return uncovered_rows_; }
  // [num_layers]
  const std::vector<OverflowCounts>& overflow() const { return overflow_; }
  // [num_layers, num_experts]
  const std::vector<uint32_t>& rows() const { return rows_; }

 private:
  const int64_t num_experts_;
  const std::function<bool(uint64_t id)> is_wanted_;
  const std::vector<ScheduledChunk>* chunks_ = nullptr;
  // [num_tokens]; null for tokens that were accounted for before.
  std::vector<Sequence*> sequence_of_;
  std::vector<uint8_t> is_changed_;  // [num_tokens] by a policy, in any layer
  std::vector<uint8_t> is_crossed_;  // [num_tokens] likewise
  bool counts_wanted_ = false;       // by any sequence of the step
  RoutingAccount total_;
  int64_t overflow_rows_ = 0;
  int64_t uncovered_rows_ = 0;
  std::vector<OverflowCounts> overflow_;
  std::vector<uint32_t> rows_;
};

}  // namespace expertmesh::router
