#include "router_service/scale_server.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "router_service/router_metrics.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

ScaleMonitorOptions MonitorOptions(const RouterConfig& config) {
  ScaleMonitorOptions options;
  options.signal.target_utilisation = config.scale_target_utilization;
  options.signal.scale_down_window =
      absl::Seconds(config.scale_down_window_seconds);
  options.window = absl::Seconds(config.scale_window_seconds);
  return options;
}

std::vector<ScalePool> Pools(const MeshConfig& mesh, Metrics* metrics) {
  constexpr uint32_t kMost = std::numeric_limits<int>::max();
  std::vector<ScalePool> pools;
  for (const PoolConfig& pool : mesh.pools) {
    const uint32_t most = pool.max_replicas == 0 ? kMost : pool.max_replicas;
    pools.push_back(
        {.name = pool.name,
         .min_replicas = static_cast<int>(std::min(pool.min_replicas, kMost)),
         .max_replicas = static_cast<int>(std::min(most, kMost)),
         .metrics =
             MakePoolScaleMetrics(pool.name, pool.max_replicas, metrics)});
  }
  return pools;
}

}  // namespace

ScaleServer::ScaleServer(const RouterConfig& config, const MeshConfig& mesh,
                         Snapshot endpoints, Metrics* metrics)
    : endpoints_(std::move(endpoints)),
      // Services report every second.
      interval_(std::min(absl::Seconds(config.scale_window_seconds / 10),
                         absl::Seconds(1))),
      monitor_(MonitorOptions(config), Pools(mesh, metrics), Clock::Real()),
      service_(&monitor_) {}

absl::StatusOr<std::unique_ptr<ScaleServer>> ScaleServer::Start(
    const RouterConfig& config, const MeshConfig& mesh, Snapshot endpoints,
    Metrics* metrics) {
  auto result = std::unique_ptr<ScaleServer>(
      new ScaleServer(config, mesh, std::move(endpoints), metrics));
  if (!config.scaler_listen.empty()) {
    GrpcServerOptions options;
    options.listen = config.scaler_listen;
    options.health_names = {"externalscaler.ExternalScaler"};
    ASSIGN_OR_RETURN(result->server_,
                     GrpcServer::Start(options, {&result->service_}));
    result->server_->SetServing(true);
  }
  ScaleServer* const self = result.get();
  self->timer_ = std::make_unique<WakeTimer>([self](absl::Duration now) {
    self->monitor_.Observe(self->endpoints_());
    self->service_.Publish();
    return now + self->interval_;
  });
  self->timer_->WakeBy(Clock::Real()->Now());
  return result;
}

ScaleServer::~ScaleServer() {
  timer_.reset();
  service_.EndStreams();
  // So that the streams' status is delivered.
  if (server_ != nullptr) server_->Shutdown(absl::Seconds(1));
}

}  // namespace expertmesh::router
