#include "router_service/router_ports.h"

#include <utility>

#include "services/core/status_macros.h"

namespace expertmesh::router {

absl::StatusOr<std::unique_ptr<RouterPorts>> RouterPorts::Load(
    const RouterConfig& config, Metrics* metrics) {
  std::unique_ptr<RouterPorts> ports(new RouterPorts(config, metrics));
  ASSIGN_OR_RETURN(ports->client_tls_,
                   ports->LoadTls(config.client_tls, "client"));
  ASSIGN_OR_RETURN(ports->mesh_tls_, ports->LoadTls(config.mesh_tls, "mesh"));
  RETURN_IF_ERROR(ports->LoadTokens());
  return ports;
}

absl::StatusOr<std::unique_ptr<TlsIdentity>> RouterPorts::LoadTls(
    const TlsFiles& files, const std::string& use) {
  if (!files.any()) return nullptr;
  prometheus::Gauge& expiry = metrics_.Gauge(
      "expertmesh_router_certificate_expiry_timestamp_seconds",
      "When the certificate in use ends to be valid, in Unix time.",
      {{"use", use}});
  return TlsIdentity::Load(files, [&expiry](absl::Time time) {
    expiry.Set(static_cast<double>(absl::ToUnixSeconds(time)));
  });
}

absl::Status RouterPorts::LoadTokens() {
  if (config_.client_tokens.empty()) return absl::OkStatus();
  unauthenticated_ = &metrics_.Counter(
      "expertmesh_router_unauthenticated_total",
      "Calls that were refused for want of a token that is accepted.");
  ASSIGN_OR_RETURN(
      tokens_, BearerTokens::Load("--client-tokens", config_.client_tokens));
  return absl::OkStatus();
}

std::shared_ptr<grpc::ServerCredentials> RouterPorts::ClientCredentials()
    const {
  auto credentials = ServerCredentials(client_tls_.get());
  if (tokens_ != nullptr) {
    credentials->SetAuthMetadataProcessor(
        tokens_->Guard([this] { unauthenticated_->Increment(); }));
  }
  return credentials;
}

absl::Status RouterPorts::Listen(const Services& services) {
  GrpcServerOptions client;
  client.listen = config_.listen;
  client.health_names = {"expertmesh.v1.GenerationService",
                         "expertmesh.v1.ModelService"};
  client.health_listen = config_.health_listen;
  client.credentials = ClientCredentials();
  if (config_.client_connection_age_seconds > 0) {
    client.connection_age =
        absl::Seconds(config_.client_connection_age_seconds);
  }
  ASSIGN_OR_RETURN(client_, GrpcServer::Start(client, services.client));
  GrpcServerOptions admin;
  admin.listen = AdminListen(config_);
  admin.health_names = {"expertmesh.admin.v1.AdminService"};
  admin.credentials = ServerCredentials(mesh_tls_.get());
  ASSIGN_OR_RETURN(admin_, GrpcServer::Start(admin, services.admin));
  return absl::OkStatus();
}

void RouterPorts::SetServing(bool serving) {
  client_->SetServing(serving);
  admin_->SetServing(serving);
}

void RouterPorts::Shutdown(absl::Duration deadline) {
  client_->Shutdown(deadline);
  admin_->Shutdown(deadline);
}

void RouterPorts::Close() {
  admin_ = nullptr;
  client_ = nullptr;
}

}  // namespace expertmesh::router
