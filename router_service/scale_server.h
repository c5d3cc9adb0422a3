#pragma once

// What autoscalers are told: watches the pools' load and serves it to KEDA.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router_service/api/external_scaler_impl.h"
#include "router_service/control/scale_monitor.h"
#include "router_service/router_config.h"
#include "router_service/transport/wake_timer.h"
#include "services/mesh/mesh_config.h"
#include "services/runtime/metrics.h"
#include "services/runtime/server_runtime.h"

namespace expertmesh::router {

// Owns the monitor, a timer that keeps it up to date, and the read-only server
// of --scaler-listen, if one is wanted. Thread-safe.
class ScaleServer {
 public:
  using Snapshot = std::function<std::vector<EndpointInfo>()>;

  // `endpoints` tells what is known of the expert services, on the timer's
  // thread. What it needs, `metrics` and `mesh`' services included, must
  // outlive the result.
  // Errors: those of GrpcServer::Start.
  static absl::StatusOr<std::unique_ptr<ScaleServer>> Start(
      const RouterConfig& config, const MeshConfig& mesh, Snapshot endpoints,
      Metrics* metrics);
  // Ends the streams of --scaler-listen with UNAVAILABLE.
  ~ScaleServer();

  ScaleServer(const ScaleServer&) = delete;
  ScaleServer& operator=(const ScaleServer&) = delete;

  const ScaleMonitor* monitor() const { return &monitor_; }
  // Of the server, with the port in use; empty where none is wanted.
  std::string address() const {
    return server_ == nullptr ? "" : server_->address();
  }

 private:
  ScaleServer(const RouterConfig& config, const MeshConfig& mesh,
              Snapshot endpoints, Metrics* metrics);

  const Snapshot endpoints_;
  const absl::Duration interval_;
  ScaleMonitor monitor_;
  ExternalScalerImpl service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<WakeTimer> timer_;
};

}  // namespace expertmesh::router
