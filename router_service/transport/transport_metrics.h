#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <string>
#include <vector>

namespace expertmesh::router {

// Where transport counts; null or missing members are not counted. Owned by
// the registry, which outlives the transport.
struct TransportMetrics {
  // Series by endpoint, which come and go with it; labels "endpoint", "pool".
  // expertmesh_router_expert_rpc_duration_seconds: Send to Done.
  prometheus::Family<prometheus::Histogram>* rpc_duration_seconds = nullptr;
  // expertmesh_router_expert_inflight_rows: sent and not answered.
  prometheus::Family<prometheus::Gauge>* inflight_rows = nullptr;
  // expertmesh_router_expert_row_seconds_total: these, integrated over time.
  prometheus::Family<prometheus::Counter>* row_seconds = nullptr;
  // expertmesh_router_expert_credit_rows: granted by its last answer.
  prometheus::Family<prometheus::Gauge>* credit_rows = nullptr;
  // expertmesh_router_expert_shared_memory: 1 where batches go by it.
  prometheus::Family<prometheus::Gauge>* shared_memory = nullptr;
  // expertmesh_router_expert_{sent,received}_bytes_total: of messages, without
  // what the transport adds.
  prometheus::Family<prometheus::Counter>* sent_bytes = nullptr;
  prometheus::Family<prometheus::Counter>* received_bytes = nullptr;
  // expertmesh_router_expert_endpoints, by state in the order of EndpointState;
  // label "state".
  std::vector<prometheus::Gauge*> endpoints;
  // expertmesh_router_endpoints_refused_total: times one became refused, in the
  // order of RefusalReason; label "reason".
  std::vector<prometheus::Counter*> refused;
};

template <typename Metric>
Metric* MetricAt(const std::vector<Metric*>& metrics, size_t index) {
  return index < metrics.size() ? metrics[index] : nullptr;
}

// The series of one endpoint: made and dropped with this. At any time, an
// address has one of these at most.
class EndpointSeries {
 public:
  EndpointSeries(const TransportMetrics& metrics, const std::string& pool,
                 const std::string& address);
  ~EndpointSeries();

  EndpointSeries(const EndpointSeries&) = delete;
  EndpointSeries& operator=(const EndpointSeries&) = delete;

  prometheus::Histogram* rpc_duration_seconds() const { return duration_; }
  prometheus::Gauge* inflight_rows() const { return rows_; }
  prometheus::Counter* row_seconds() const { return row_seconds_; }
  prometheus::Gauge* credit_rows() const { return credit_rows_; }
  prometheus::Gauge* shared_memory() const { return shared_memory_; }
  prometheus::Counter* sent_bytes() const { return sent_bytes_; }
  prometheus::Counter* received_bytes() const { return received_bytes_; }

 private:
  const TransportMetrics families_;
  prometheus::Histogram* duration_ = nullptr;
  prometheus::Gauge* rows_ = nullptr;
  prometheus::Counter* row_seconds_ = nullptr;
  prometheus::Gauge* credit_rows_ = nullptr;
  prometheus::Gauge* shared_memory_ = nullptr;
  prometheus::Counter* sent_bytes_ = nullptr;
  prometheus::Counter* received_bytes_ = nullptr;
};

}  // namespace expertmesh::router
