#pragma once

// Where `expertmesh scale` reaches a launcher.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/cli/pool_scaler.h"

namespace expertmesh {

// The unix socket of the launcher with this run folder.
std::string LauncherSocket(const std::string& run_folder);

// Sockets of the launchers of this user on this machine.
std::vector<std::string> LauncherSockets();

// Serves LauncherService from construction to destruction. A call blocks one of
// gRPC's threads.
class LauncherServer {
 public:
  // `scaler` must outlive the server. Errors: UNAVAILABLE where the socket
  // cannot be made.
  static absl::StatusOr<std::unique_ptr<LauncherServer>> Start(
      const std::string& socket, PoolScaler* scaler);
  // Waits for calls, which end when the supervisor stops.
  ~LauncherServer();

 private:
  class Service;
  LauncherServer();

  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace expertmesh
