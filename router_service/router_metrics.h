#pragma once

// Every metric of the router service, made at start so that each series exists
// from the first scrape; those of endpoints come and go with them.

#include <string>

#include "router_service/api/api_metrics.h"
#include "router_service/control/scale_monitor.h"
#include "router_service/dispatch/dispatch_metrics.h"
#include "router_service/engine/engine_metrics.h"
#include "router_service/transport/resolver.h"
#include "router_service/transport/transport_metrics.h"
#include "services/checkpoint/model_config.h"
#include "services/runtime/metrics.h"

namespace expertmesh::router {

EngineMetrics MakeEngineMetrics(const ModelConfig& config, Metrics* metrics);
ApiMetrics MakeApiMetrics(Metrics* metrics);
DispatchMetrics MakeDispatchMetrics(Metrics* metrics);
TransportMetrics MakeTransportMetrics(Metrics* metrics);
PoolScaleMetrics MakePoolScaleMetrics(const std::string& pool,
                                      Metrics* metrics);
ResolutionCounters MakeResolutionCounters(const std::string& pool,
                                          Metrics* metrics);

}  // namespace expertmesh::router
