#pragma once

// What the engine counts. Pointers are owned by the registry and null only
// where it says so.

#include <array>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "router_service/dispatch/routing.h"
#include "router_service/engine/hot_experts.h"
#include "router_service/model/step_times.h"

namespace expertmesh::router {

struct EngineMetrics {
  prometheus::Gauge* requests_running;
  prometheus::Gauge* requests_waiting;
  prometheus::Gauge* requests_waiting_limit;
  prometheus::Gauge* kv_cache_usage_ratio;
  prometheus::Histogram* time_to_first_token_seconds;
  prometheus::Histogram* inter_token_latency_seconds;
  prometheus::Histogram* request_duration_seconds;
  prometheus::Histogram* queue_duration_seconds;
  prometheus::Histogram* step_duration_seconds;
  std::array<prometheus::Counter*, kNumStepPhases> step_phase_seconds;
  prometheus::Counter* prompt_tokens;
  prometheus::Counter* generated_tokens;
  prometheus::Counter* preemptions;
  prometheus::Counter* prefix_cache_lookup_tokens;
  prometheus::Counter* prefix_cache_hit_tokens;
  prometheus::Counter* prefix_cache_evicted_pages;
  prometheus::Gauge* prefix_cache_pages;
  prometheus::Gauge* prefill_budget_tokens;
  std::array<prometheus::Counter*, kNumRowOutcomes> routed_rows;
  prometheus::Counter* gate_mass_chosen;
  prometheus::Counter* gate_mass_kept;
  prometheus::Counter* overflow_rows;   // reason: capacity
  prometheus::Counter* uncovered_rows;  // reason: uncovered
  // By layer, reason, outcome; null for layers without experts and for primary.
  // Empty: not counted by layer.
  using ByReason = std::array<std::array<prometheus::Counter*, kNumRowOutcomes>,
                              kNumOverflowReasons>;
  std::vector<ByReason> layer_overflow_rows;
  // One per MoE layer, by layer index; null for other layers, or for all.
  std::vector<prometheus::Gauge*> layer_balancedness_ratio;
  HotExperts* hot_experts = nullptr;  // null: not reported
};

}  // namespace expertmesh::router
