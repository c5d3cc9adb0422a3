#include "router_service/transport/transport_metrics.h"

#include "services/runtime/metrics.h"

namespace expertmesh::router {

EndpointSeries::EndpointSeries(const TransportMetrics& metrics,
                               const std::string& pool,
                               const std::string& address)
    : duration_family_(metrics.rpc_duration_seconds),
      rows_family_(metrics.inflight_rows),
      shared_memory_family_(metrics.shared_memory) {
  const Labels labels = {{"endpoint", address}, {"pool", pool}};
  if (duration_family_ != nullptr) {
    duration_ = &duration_family_->Add(labels, StepSecondsBuckets());
  }
  if (rows_family_ != nullptr) rows_ = &rows_family_->Add(labels);
  if (shared_memory_family_ != nullptr) {
    shared_memory_ = &shared_memory_family_->Add(labels);
  }
}

EndpointSeries::~EndpointSeries() {
  if (duration_ != nullptr) duration_family_->Remove(duration_);
  if (rows_ != nullptr) rows_family_->Remove(rows_);
  if (shared_memory_ != nullptr) shared_memory_family_->Remove(shared_memory_);
}

}  // namespace expertmesh::router
