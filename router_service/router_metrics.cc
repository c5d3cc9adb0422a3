#include "router_service/router_metrics.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "router_service/transport/endpoint_info.h"
#include "services/core/log.h"

namespace expertmesh::router {

namespace {

std::vector<EngineMetrics::ByReason> MakeLayerOverflow(
    const ModelConfig& config, Metrics* metrics) {
  std::vector<EngineMetrics::ByReason> out(config.num_layers);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].is_moe) continue;
    for (int reason = 0; reason < kNumOverflowReasons; ++reason) {
      for (int outcome = 0; outcome < kNumRowOutcomes; ++outcome) {
        if (outcome == static_cast<int>(RowOutcome::kPrimary)) continue;
        out[layer][reason][outcome] = &metrics->Counter(
            "expertmesh_router_layer_overflow_rows_total",
            "Assignments that their first choice could not simply serve, by "
            "why and what became of them.",
            {{"layer", absl::StrCat(layer)},
             {"reason", std::string(OverflowReasonName(
                            static_cast<OverflowReason>(reason)))},
             {"outcome",
              std::string(RowOutcomeName(static_cast<RowOutcome>(outcome)))}});
      }
    }
  }
  return out;
}

void MakePrefixCacheMetrics(Metrics* metrics, EngineMetrics* out) {
  out->prefix_cache_lookup_tokens =
      &metrics->Counter("expertmesh_router_prefix_cache_lookup_tokens_total",
                        "Tokens of requests when they were admitted.");
  out->prefix_cache_hit_tokens = &metrics->Counter(
      "expertmesh_router_prefix_cache_hit_tokens_total",
      "Of these, tokens whose keys and values were found in the prefix cache.");
  out->prefix_cache_evicted_pages = &metrics->Counter(
      "expertmesh_router_prefix_cache_evicted_pages_total",
      "Pages of the prefix cache that gave way to new tokens.");
  out->prefix_cache_pages = &metrics->Gauge(
      "expertmesh_router_prefix_cache_pages",
      "Pages that requests with the same prefix will find, used or not.");
}

void MakeLayerMetrics(const ModelConfig& config, Metrics* metrics,
                      EngineMetrics* out) {
  out->layer_overflow_rows = MakeLayerOverflow(config, metrics);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!config.layers[layer].is_moe) continue;
    out->layer_balancedness_ratio[layer] = &metrics->Gauge(
        "expertmesh_router_layer_balancedness_ratio",
        "Mean over maximum of the rows of a layer's experts in the last 30 s.",
        {{"layer", absl::StrCat(layer)}});
    out->layer_balancedness_ratio[layer]->Set(1.0);
  }
}

}  // namespace

EngineMetrics MakeEngineMetrics(const ModelConfig& config, ExpertDetail detail,
                                Metrics* metrics) {
  EngineMetrics out;
  out.requests_running =
      &metrics->Gauge("expertmesh_router_requests_running",
                      "Requests that have KV cache and take part in steps.");
  out.requests_waiting = &metrics->Gauge("expertmesh_router_requests_waiting",
                                         "Requests waiting to be admitted.");
  out.requests_waiting_limit =
      &metrics->Gauge("expertmesh_router_requests_waiting_limit",
                      "Requests that may wait; more are refused.");
  out.kv_cache_usage_ratio =
      &metrics->Gauge("expertmesh_router_kv_cache_usage_ratio",
                      "Share of the KV cache's pages in use.");
  out.time_to_first_token_seconds = &metrics->Histogram(
      "expertmesh_router_time_to_first_token_seconds",
      "From a request's arrival to its first token.", RequestSecondsBuckets());
  out.inter_token_latency_seconds = &metrics->Histogram(
      "expertmesh_router_inter_token_latency_seconds",
      "Between two tokens of one request.", StepSecondsBuckets());
  out.request_duration_seconds = &metrics->Histogram(
      "expertmesh_router_request_duration_seconds",
      "From a request's arrival to its end, of those that succeeded.",
      RequestSecondsBuckets());
  out.queue_duration_seconds = &metrics->Histogram(
      "expertmesh_router_queue_duration_seconds",
      "From a request's arrival to its first step.", RequestSecondsBuckets());
  out.step_duration_seconds = &metrics->Histogram(
      "expertmesh_router_step_duration_seconds",
      "One pass of a batch through all layers.", StepSecondsBuckets());
  for (size_t i = 0; i < kNumStepPhases; ++i) {
    out.step_phase_seconds[i] = &metrics->Counter(
        "expertmesh_router_step_phase_seconds_total",
        "Time of steps, by what the engine's thread did or waited for.",
        {{"phase", std::string(StepPhaseName(static_cast<StepPhase>(i)))}});
  }
  out.prompt_tokens =
      &metrics->Counter("expertmesh_router_prompt_tokens_total",
                        "Prompt tokens, computed or found in the prefix cache, "
                        "each request's once.");
  out.generated_tokens = &metrics->Counter(
      "expertmesh_router_generated_tokens_total", "Tokens sampled.");
  out.preemptions =
      &metrics->Counter("expertmesh_router_preemptions_total",
                        "Requests that gave their KV cache to an older one.");
  MakePrefixCacheMetrics(metrics, &out);
  out.prefill_budget_tokens =
      &metrics->Gauge("expertmesh_router_prefill_budget_tokens",
                      "Prompt tokens that may join a step that decodes.");
  for (int i = 0; i < kNumRowOutcomes; ++i) {
    out.routed_rows[i] = &metrics->Counter(
        "expertmesh_router_routed_rows_total",
        "Assignments of a token to an expert, by what became of them.",
        {{"outcome", std::string(RowOutcomeName(static_cast<RowOutcome>(i)))}});
  }
  out.gate_mass_chosen =
      &metrics->Counter("expertmesh_router_gate_mass_chosen_total",
                        "Gate scores of the experts first chosen.");
  out.gate_mass_kept =
      &metrics->Counter("expertmesh_router_gate_mass_kept_total",
                        "Gate scores of the experts that served.");
  out.overflow_rows = &metrics->Counter(
      "expertmesh_router_overflow_rows_total",
      "Assignments that found their expert full.", {{"reason", "capacity"}});
  out.uncovered_rows = &metrics->Counter(
      "expertmesh_router_overflow_rows_total",
      "Assignments that found their expert full.", {{"reason", "uncovered"}});
  out.layer_balancedness_ratio.resize(config.num_layers, nullptr);
  if (detail == ExpertDetail::kOff) return out;
  auto hot_experts = std::make_shared<HotExperts>();
  out.hot_experts = hot_experts.get();
  metrics->AddCollector(std::move(hot_experts));
  if (detail == ExpertDetail::kTopK &&
      config.num_moe_layers() > kMostDetailedLayers) {
    return out;
  }
  MakeLayerMetrics(config, metrics, &out);
  return out;
}

std::shared_ptr<SlotRowsCollector> MakeExpertRowsCollector(
    const ModelConfig& config, ExpertDetail detail, Metrics* metrics) {
  if (detail != ExpertDetail::kFull) return nullptr;
  std::vector<int64_t> layers;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.layers[layer].is_moe) layers.push_back(layer);
  }
  auto collector = std::make_shared<SlotRowsCollector>(
      "expertmesh_router_expert_rows_total",
      "Rows that the router's tokens had for each expert.", std::move(layers),
      config.num_experts);
  Log(LogLevel::kWarning, "--metrics-expert-detail=full: a series per expert",
      {{"series", collector->num_series()}});
  metrics->AddCollector(collector);
  return collector;
}

ApiMetrics MakeApiMetrics(Metrics* metrics) {
  ApiMetrics out;
  for (int method = 0; method < kNumMethods; ++method) {
    for (int code = 0; code < kNumStatusCodes; ++code) {
      out.requests[method][code] = &metrics->Counter(
          "expertmesh_router_requests_total",
          "Requests by method and gRPC status code.",
          {{"method", kMethodNames[method]},
           {"code",
            absl::StatusCodeToString(static_cast<absl::StatusCode>(code))}});
    }
  }
  return out;
}

DispatchMetrics MakeDispatchMetrics(Metrics* metrics) {
  const auto resent = [&](const char* reason) {
    return &metrics->Counter("expertmesh_router_resent_batches_total",
                             "Batches sent again, or to another replica.",
                             {{"reason", reason}});
  };
  DispatchMetrics out;
  out.resent_error = resent("error");
  out.resent_refused = resent("refused");
  out.resent_overdue = resent("overdue");
  out.crossed_rows = &metrics->Counter(
      "expertmesh_router_crossed_rows_total",
      "Rows sent to an expert service of another numerics_id than the mesh's, "
      "because no other could serve them, or by --mix-numerics.");
  out.hedged = &metrics->Counter(
      "expertmesh_router_hedged_batches_total",
      "Batches sent to a second replica because the first was late.");
  return out;
}

TransportMetrics MakeTransportMetrics(Metrics* metrics) {
  TransportMetrics out;
  out.rpc_duration_seconds = &metrics->HistogramFamily(
      "expertmesh_router_expert_rpc_duration_seconds",
      "From sending a batch to an expert service to its answer.");
  out.shared_memory = &metrics->GaugeFamily(
      "expertmesh_router_expert_shared_memory",
      "Whether batches to the endpoint go through shared memory.");
  out.sent_bytes = &metrics->CounterFamily(
      "expertmesh_router_expert_sent_bytes_total",
      "Of batches sent to an expert service, by whichever way.");
  out.received_bytes =
      &metrics->CounterFamily("expertmesh_router_expert_received_bytes_total",
                              "Of an expert service's answers.");
  out.inflight_rows =
      &metrics->GaugeFamily("expertmesh_router_expert_inflight_rows",
                            "Rows sent to an expert service and not answered.");
  out.row_seconds = &metrics->CounterFamily(
      "expertmesh_router_expert_row_seconds_total",
      "Seconds that rows waited for an expert service's answer, of all rows: "
      "its rate is the mean of rows in flight.");
  out.credit_rows =
      &metrics->GaugeFamily("expertmesh_router_expert_credit_rows",
                            "Rows that an expert service lets this router have "
                            "unanswered; 0 before its first answer.");
  for (size_t state = 0; state < kNumEndpointStates; ++state) {
    out.endpoints.push_back(&metrics->Gauge(
        "expertmesh_router_expert_endpoints", "Expert services by state.",
        {{"state",
          std::string(EndpointStateName(static_cast<EndpointState>(state)))}}));
  }
  for (size_t reason = 0; reason < kNumRefusalReasons; ++reason) {
    out.refused.push_back(&metrics->Counter(
        "expertmesh_router_endpoints_refused_total",
        "Times an expert service was refused, by what is wrong with it.",
        {{"reason", std::string(RefusalReasonName(
                        static_cast<RefusalReason>(reason)))}}));
  }
  return out;
}

PlacementMetrics MakePlacementMetrics(Metrics* metrics) {
  PlacementMetrics out;
  out.uncovered_experts =
      &metrics->Gauge("expertmesh_router_uncovered_experts",
                      "Slots (layer, expert) that no endpoint serves.");
  out.copies = &metrics->Gauge(
      "expertmesh_router_placement_copies",
      "Copies of experts that rows can go to, of all layers and services.");
  out.checksum = &metrics->Gauge(
      "expertmesh_router_placement_checksum",
      "Of which service holds which experts; the same on routers that route to "
      "the same copies.");
  return out;
}

void PlacementMetrics::Publish(const EndpointPlacement& placed) const {
  uncovered_experts->Set(static_cast<double>(placed.uncovered_slots));
  copies->Set(static_cast<double>(placed.copies));
  checksum->Set(placed.checksum);
}

ControllerMetrics MakeControllerMetrics(Metrics* metrics) {
  const auto changes = [&](const char* outcome) {
    return &metrics->Counter(
        "expertmesh_router_placement_changes_total",
        "Times experts were moved, by a rebalance or an operator.",
        {{"outcome", outcome}});
  };
  ControllerMetrics out;
  out.changes_done = changes("done");
  out.changes_failed = changes("failed");
  out.moves = &metrics->Counter("expertmesh_router_placement_moves_total",
                                "Copies of experts loaded and unloaded.");
  out.loaded_bytes =
      &metrics->Counter("expertmesh_router_placement_loaded_bytes_total",
                        "Weights that moves loaded.");
  return out;
}

PoolScaleMetrics MakePoolScaleMetrics(const std::string& pool,
                                      uint32_t max_replicas, Metrics* metrics) {
  const auto gauge = [&](const char* name, const char* help) {
    return &metrics->Gauge(name, help, {{"pool", pool}});
  };
  PoolScaleMetrics out;
  out.demand_rows_per_second =
      gauge("expertmesh_router_pool_demand_rows_per_second",
            "Rows that the services of a pool were asked for by all routers.");
  out.utilization_ratio =
      gauge("expertmesh_router_pool_utilization_ratio",
            "Time that a pool's replicas need for its demand over the time "
            "there is; above 1 where they cannot keep up.");
  out.desired_replicas = gauge("expertmesh_router_pool_desired_replicas",
                               "Replicas that a pool should have.");
  out.replicas =
      gauge("expertmesh_router_pool_replicas", "Replicas of a pool, ready.");
  if (max_replicas > 0) {
    gauge("expertmesh_router_pool_max_replicas",
          "Replicas that a pool may have, by the mesh file.")
        ->Set(max_replicas);
  }
  return out;
}

ResolutionCounters MakeResolutionCounters(const std::string& pool,
                                          Metrics* metrics) {
  ResolutionCounters out = {};
  for (size_t i = 0; i < out.size(); ++i) {
    const auto outcome = static_cast<ResolutionOutcome>(i);
    out[i] = &metrics->Counter(
        "expertmesh_router_resolutions_total",
        "Lookups of a pool's name, by what came of them.",
        {{"pool", pool},
         {"outcome", std::string(ResolutionOutcomeName(outcome))}});
  }
  return out;
}

}  // namespace expertmesh::router
