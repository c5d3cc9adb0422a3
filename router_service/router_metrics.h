#pragma once

// Every metric of the router service, made at start so that each series exists
// from the first scrape; those of endpoints come and go with them.

#include <memory>
#include <string>

#include "router_service/api/api_metrics.h"
#include "router_service/control/controller.h"
#include "router_service/control/scale_monitor.h"
#include "router_service/dispatch/dispatch_metrics.h"
#include "router_service/dispatch/endpoint_placement.h"
#include "router_service/engine/engine_metrics.h"
#include "router_service/transport/resolver.h"
#include "router_service/transport/transport_metrics.h"
#include "services/checkpoint/model_config.h"
#include "services/runtime/metrics.h"
#include "services/runtime/observability_options.h"
#include "services/runtime/slot_rows_collector.h"

namespace expertmesh::router {

// Layers that may have series of their own where they are to be bounded: 13
// each.
inline constexpr int64_t kMostDetailedLayers = 64;

// Series by layer only where `detail` says so, and with kTopK for models of
// kMostDetailedLayers MoE layers at most.
EngineMetrics MakeEngineMetrics(const ModelConfig& config, ExpertDetail detail,
                                Metrics* metrics);
// Null unless `detail` is kFull, which is logged as a warning.
std::shared_ptr<SlotRowsCollector> MakeExpertRowsCollector(
    const ModelConfig& config, ExpertDetail detail, Metrics* metrics);
ApiMetrics MakeApiMetrics(Metrics* metrics);
DispatchMetrics MakeDispatchMetrics(Metrics* metrics);
TransportMetrics MakeTransportMetrics(Metrics* metrics);

// What this router routes to.
struct PlacementMetrics {
  prometheus::Gauge* uncovered_experts = nullptr;
  prometheus::Gauge* copies = nullptr;
  prometheus::Gauge* checksum = nullptr;

  void Publish(const EndpointPlacement& placed) const;
};
PlacementMetrics MakePlacementMetrics(Metrics* metrics);
ControllerMetrics MakeControllerMetrics(Metrics* metrics);

//   max_replicas  the mesh file's; 0: no bound, and no series
PoolScaleMetrics MakePoolScaleMetrics(const std::string& pool,
                                      uint32_t max_replicas, Metrics* metrics);
ResolutionCounters MakeResolutionCounters(const std::string& pool,
                                          Metrics* metrics);

}  // namespace expertmesh::router
