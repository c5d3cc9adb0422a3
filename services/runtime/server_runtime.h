#pragma once

// A gRPC server with health checking, reflection, and a drain.

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/support/status.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/runtime/address.h"

namespace expertmesh {

struct GrpcServerOptions {
  std::string listen = "127.0.0.1:0";  // HOST:PORT; port 0: any free port
  int max_receive_bytes = 64 << 20;    // a larger message ends its call
  // Services whose health is asked for by name, beside "" for the whole server.
  std::vector<std::string> health_names;
  std::shared_ptr<grpc::ServerCredentials> credentials;  // null: no TLS
  // After which a client's new calls need a new connection, give or take a
  // tenth; those under way end in peace.
  absl::Duration connection_age = absl::InfiniteDuration();
  // HOST:PORT of a second server, for the same health and its reflection,
  // without TLS, of which many who ask for health know nothing. "": none.
  std::string health_listen;
};

// The health of a server that can answer at all, whatever it waits for: what a
// supervisor should restart a process by.
inline constexpr char kLiveHealth[] = "live";

// Messages of gRPC and Protobuf themselves go to our log (as debug lines: what
// matters comes back as a status). Call once in main, before anything of gRPC.
void RouteGrpcLogs();

// A running server with reflection and grpc.health.v1. Thread-safe.
class GrpcServer {
 public:
  // Serves `services`, which must outlive the result. A port somebody else
  // listens on is an error, never shared. All health but that of kLiveHealth is
  // NOT_SERVING until SetServing.
  // Errors: INVALID_ARGUMENT for a malformed address, UNAVAILABLE when it
  // cannot be listened on.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(
      const GrpcServerOptions& options,
      absl::Span<grpc::Service* const> services);
  // As Shutdown(absl::ZeroDuration()).
  ~GrpcServer();

  // With the port in use: "127.0.0.1:41001".
  std::string address() const { return address_.ToString(); }
  int port() const { return address_.port; }
  // Of the server for health alone; "" without one.
  std::string health_address() const {
    return health_ == nullptr ? "" : health_->address();
  }

  // Health of one service, or of the server as a whole and all its services but
  // kLiveHealth.
  void SetServing(const std::string& health_name, bool serving);
  void SetServing(bool serving);

  // Reports NOT_SERVING for good, takes no new calls, waits for running calls
  // to end, cancels those still running after `deadline`, and returns when all
  // have ended. Streams without an end are the owner's to end first.
  void Shutdown(absl::Duration deadline);

 private:
  GrpcServer(HostPort address, std::vector<std::string> health_names)
      : address_(std::move(address)), health_names_(std::move(health_names)) {}

  HostPort address_;
  const std::vector<std::string> health_names_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<GrpcServer> health_;  // null: none
};

}  // namespace expertmesh
