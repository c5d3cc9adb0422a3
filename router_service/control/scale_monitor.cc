#include "router_service/control/scale_monitor.h"

#include <algorithm>
#include <utility>

namespace expertmesh::router {
namespace {

bool IsServing(const EndpointInfo& endpoint) {
  return endpoint.state == EndpointState::kReady ||
         endpoint.state == EndpointState::kDraining;
}

void Set(prometheus::Gauge* gauge, double value) {
  if (gauge != nullptr) gauge->Set(value);
}

}  // namespace

ScaleMonitor::ScaleMonitor(const ScaleMonitorOptions& options,
                           std::vector<ScalePool> pools, const Clock* clock)
    : options_(options),
      pools_(std::move(pools)),
      clock_(clock),
      signal_(options.signal, clock),
      scales_(pools_.size()) {
  Observe({});
}

void ScaleMonitor::Observe(absl::Span<const EndpointInfo> endpoints) {
  MutexLock lock(&mutex_);
  Measure(endpoints, clock_->Now());
  for (size_t i = 0; i < pools_.size(); ++i) {
    PoolObservation observation;
    observation.pool = pools_[i].name;
    observation.min_replicas = pools_[i].min_replicas;
    observation.max_replicas = pools_[i].max_replicas;
    for (const EndpointInfo& endpoint : endpoints) {
      if (endpoint.pool == pools_[i].name) Count(endpoint, &observation);
    }
    Recommend(pools_[i], std::move(observation), &scales_[i]);
  }
}

void ScaleMonitor::Measure(absl::Span<const EndpointInfo> endpoints,
                           absl::Duration now) {
  std::map<int, Samples> measured;
  for (const EndpointInfo& endpoint : endpoints) {
    if (!IsServing(endpoint)) continue;
    Samples& samples = measured[endpoint.index];
    samples = std::move(samples_[endpoint.index]);
    const bool is_another =
        !samples.empty() &&
        (endpoint.served_rows < samples.back().served_rows ||
         endpoint.busy_us < samples.back().busy_us);
    if (is_another) samples.clear();
    samples.push_back({now, endpoint.served_rows,
                       endpoint.served_rows + endpoint.queue_rows,
                       endpoint.busy_us});
    while (samples.size() > 2 && samples[1].time + options_.window <= now) {
      samples.pop_front();
    }
  }
  samples_ = std::move(measured);
}

void ScaleMonitor::Count(const EndpointInfo& endpoint,
                         PoolObservation* pool) const {
  switch (endpoint.state) {
    case EndpointState::kReady:
      ++pool->replicas;
      break;
    case EndpointState::kDraining:
      ++pool->draining_replicas;
      break;
    case EndpointState::kConnecting:
      ++pool->unseen_replicas;
      break;
    case EndpointState::kRefused:
    case EndpointState::kLeaving:
      break;
  }
  const auto found = samples_.find(endpoint.index);
  if (found == samples_.end()) return;
  const Sample& first = found->second.front();
  const Sample& last = found->second.back();
  const double seconds = absl::ToDoubleSeconds(last.time - first.time);
  if (seconds <= 0) return;
  const auto rate = [&](uint64_t from, uint64_t to) {
    return static_cast<double>(static_cast<int64_t>(to - from)) / seconds;
  };
  pool->served_rows_per_second += rate(first.served_rows, last.served_rows);
  pool->demand_rows_per_second += rate(first.asked_rows, last.asked_rows);
  // Reports come a little late, and not always equally so.
  pool->busy_share += std::min(rate(first.busy_us, last.busy_us) / 1e6, 1.0);
}

void ScaleMonitor::Recommend(const ScalePool& pool, PoolObservation observation,
                             PoolScale* out) {
  // Was a sum; what drains will have to be done by the replicas.
  observation.busy_share /= std::max(observation.replicas, 1);
  out->pool = pool.name;
  out->recommendation = signal_.Recommend(observation);
  const ScaleRecommendation& scale = out->recommendation;
  Set(pool.metrics.demand_rows_per_second, scale.demand_rows_per_second);
  Set(pool.metrics.utilization_ratio, scale.utilisation);
  Set(pool.metrics.desired_replicas, scale.desired_replicas);
  Set(pool.metrics.replicas, scale.current_replicas);
}

std::vector<PoolScale> ScaleMonitor::Pools() const {
  MutexLock lock(&mutex_);
  return scales_;
}

}  // namespace expertmesh::router
