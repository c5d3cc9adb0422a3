#pragma once

// Where the router is reached by gRPC: by clients, by operators and the mesh,
// and by whoever asks for its health alone.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "router_service/router_config.h"
#include "services/runtime/bearer_tokens.h"
#include "services/runtime/metrics.h"
#include "services/runtime/server_runtime.h"
#include "services/runtime/tls_identity.h"

namespace expertmesh::router {

// Owns the certificates, the tokens and the servers. Clients' port has TLS by
// --client-tls-*, the operators' by --mesh-tls-*. Thread-safe once it listens.
class RouterPorts {
 public:
  // Reads certificates and tokens. Errors: INVALID_ARGUMENT naming the flag.
  static absl::StatusOr<std::unique_ptr<RouterPorts>> Load(
      const RouterConfig& config, Metrics* metrics);

  // For connections to expert services; null: plain.
  const TlsIdentity* mesh_tls() const { return mesh_tls_.get(); }

  // Services of each port, which must outlive this.
  struct Services {
    std::vector<grpc::Service*> client;
    std::vector<grpc::Service*> admin;
  };
  // Errors: those of GrpcServer::Start.
  absl::Status Listen(const Services& services);

  // Health at all ports.
  void SetServing(bool serving);
  // As GrpcServer's, of all ports.
  void Shutdown(absl::Duration deadline);
  // Ends the servers; needed before services end.
  void Close();

  // With the ports in use; health's is empty where it has none.
  std::string client_address() const { return client_->address(); }
  std::string admin_address() const { return admin_->address(); }
  std::string health_address() const { return client_->health_address(); }

 private:
  RouterPorts(const RouterConfig& config, Metrics* metrics)
      : config_(config), metrics_(*metrics) {}
  absl::StatusOr<std::unique_ptr<TlsIdentity>> LoadTls(const TlsFiles& files,
                                                       const std::string& use);
  absl::Status LoadTokens();
  std::shared_ptr<grpc::ServerCredentials> ClientCredentials() const;

  const RouterConfig config_;
  Metrics& metrics_;
  std::unique_ptr<TlsIdentity> client_tls_;  // null: plain
  std::unique_ptr<TlsIdentity> mesh_tls_;    // likewise
  std::unique_ptr<BearerTokens> tokens_;     // null: none are asked for
  prometheus::Counter* unauthenticated_ = nullptr;
  std::unique_ptr<GrpcServer> client_;
  std::unique_ptr<GrpcServer> admin_;
};

}  // namespace expertmesh::router
