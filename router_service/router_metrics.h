#pragma once

// Every metric of the router service, made at start so that each series exists
// from the first scrape.

#include <string>
#include <vector>

#include "router_service/api/api_metrics.h"
#include "router_service/dispatch/dispatch_metrics.h"
#include "router_service/engine/engine_metrics.h"
#include "router_service/transport/transport_metrics.h"
#include "services/checkpoint/model_config.h"
#include "services/runtime/metrics.h"

namespace expertmesh::router {

EngineMetrics MakeEngineMetrics(const ModelConfig& config, Metrics* metrics);
ApiMetrics MakeApiMetrics(Metrics* metrics);
// `addresses` of the endpoints, in the transport's order.
DispatchMetrics MakeDispatchMetrics(Metrics* metrics);
TransportMetrics MakeTransportMetrics(const std::vector<std::string>& addresses,
                                      Metrics* metrics);

}  // namespace expertmesh::router
