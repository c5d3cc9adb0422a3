#pragma once

#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <vector>

namespace expertmesh::router {

// Where transport counts; null or missing members are not counted. Owned by
// the registry, which outlives the transport.
struct TransportMetrics {
  // By endpoint, in the order of the addresses; label "endpoint".
  // expertmesh_router_expert_rpc_duration_seconds: Send to Done.
  std::vector<prometheus::Histogram*> rpc_duration_seconds;
  // expertmesh_router_expert_inflight_rows: sent and not answered.
  std::vector<prometheus::Gauge*> inflight_rows;
  // expertmesh_router_expert_endpoints, by state in the order of EndpointState;
  // label "state".
  std::vector<prometheus::Gauge*> endpoints;
};

template <typename Metric>
Metric* MetricAt(const std::vector<Metric*>& metrics, size_t index) {
  return index < metrics.size() ? metrics[index] : nullptr;
}

}  // namespace expertmesh::router
