#pragma once

// Builds, owns and drains every object of the router service.

#include <memory>

#include "absl/status/statusor.h"
#include "router_service/router_config.h"
#include "services/runtime/shutdown_signals.h"

namespace expertmesh::router {

// Knows every class; nobody else does. One thread drives it.
class RouterServer {
 public:
  // Loads the model and listens. Requests are served at once; health says
  // SERVING while every expert is covered.
  // Errors: one line for whoever started the router.
  static absl::StatusOr<std::unique_ptr<RouterServer>> Start(
      const RouterConfig& config);
  ~RouterServer();

  // Serves until a signal comes, then stops admitting, finishes what runs (up
  // to the drain timeout) and stops. Writes the ready file when every expert is
  // covered for the first time.
  // Errors: UNAVAILABLE where the ready file cannot be written.
  absl::Status ServeUntil(ShutdownSignals* signals);

 private:
  class Impl;
  explicit RouterServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh::router
