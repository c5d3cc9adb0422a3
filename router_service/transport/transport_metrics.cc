#include "router_service/transport/transport_metrics.h"

#include "services/runtime/metrics.h"

namespace expertmesh::router {

namespace {

template <typename Metric, typename... Args>
Metric* AddTo(prometheus::Family<Metric>* family, const Labels& labels,
              const Args&... args) {
  return family == nullptr ? nullptr : &family->Add(labels, args...);
}

template <typename Metric>
void RemoveFrom(prometheus::Family<Metric>* family, Metric* metric) {
  if (metric != nullptr) family->Remove(metric);
}

}  // namespace

EndpointSeries::EndpointSeries(const TransportMetrics& metrics,
                               const std::string& pool,
                               const std::string& address)
    : families_(metrics) {
  const Labels labels = {{"endpoint", address}, {"pool", pool}};
  duration_ = AddTo(metrics.rpc_duration_seconds, labels, StepSecondsBuckets());
  rows_ = AddTo(metrics.inflight_rows, labels);
  row_seconds_ = AddTo(metrics.row_seconds, labels);
  credit_rows_ = AddTo(metrics.credit_rows, labels);
  shared_memory_ = AddTo(metrics.shared_memory, labels);
  sent_bytes_ = AddTo(metrics.sent_bytes, labels);
  received_bytes_ = AddTo(metrics.received_bytes, labels);
}

EndpointSeries::~EndpointSeries() {
  RemoveFrom(families_.rpc_duration_seconds, duration_);
  RemoveFrom(families_.inflight_rows, rows_);
  RemoveFrom(families_.row_seconds, row_seconds_);
  RemoveFrom(families_.credit_rows, credit_rows_);
  RemoveFrom(families_.shared_memory, shared_memory_);
  RemoveFrom(families_.sent_bytes, sent_bytes_);
  RemoveFrom(families_.received_bytes, received_bytes_);
}

}  // namespace expertmesh::router
