#pragma once

// What every command that talks to a router has in common.

#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "expertmesh/admin/v1/admin.grpc.pb.h"
#include "expertmesh/v1/generation.grpc.pb.h"
#include "expertmesh/v1/model.grpc.pb.h"
#include "services/runtime/tls_identity.h"

namespace expertmesh {

struct ServerFlags {
  std::string address = "127.0.0.1:50051";
  std::string admin_address;  // "": DefaultAdminAddress
  std::optional<double> timeout_seconds;
  TlsFiles tls = {"--tls", "", "", ""};
  std::string tls_server_name;  // "": the address's host
  std::string token_file;       // for clients' port alone
  TlsFiles admin_tls = {"--admin-tls", "", "", ""};
  std::string admin_tls_server_name;  // "": the admin address's host
};
// --server, --timeout, and those of TLS and tokens; returns that of --server.
// All but --server and --timeout may come from the environment.
CLI::Option* AddServerFlags(CLI::App& app, ServerFlags& flags);
// --admin and its TLS, for commands that use the admin API.
void AddAdminFlags(CLI::App& app, ServerFlags& flags);

// Channels to a router's ports, which connect on use. Thread-safe. Movable.
class Client {
 public:
  // Errors: INVALID_ARGUMENT for files that are no good.
  static absl::StatusOr<Client> Create(const ServerFlags& flags);

  v1::GenerationService::Stub& generation() { return *generation_; }
  v1::ModelService::Stub& model() { return *model_; }
  admin::v1::AdminService::Stub& admin() { return *admin_; }

  // Sets the deadline of a new call at clients' port, and shows its token.
  void Prepare(grpc::ClientContext& context) const;
  // The same at operators' port, which has no tokens.
  void PrepareAdmin(grpc::ClientContext& context) const;

  // The status of a finished call, with a message for people.
  absl::Status Result(const grpc::Status& status) const {
    return ResultAt({flags_.address, "--server", tls_ != nullptr}, status);
  }
  // The same of a call of the admin API.
  absl::Status AdminResult(const grpc::Status& status) const {
    return ResultAt({flags_.admin_address, "--admin", admin_tls_ != nullptr},
                    status);
  }

  // One call of the admin API.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Ask(
      grpc::Status (admin::v1::AdminService::Stub::*method)(
          grpc::ClientContext*, const Request&, Response*),
      const Request& request) {
    grpc::ClientContext context;
    PrepareAdmin(context);
    Response response;
    const absl::Status status =
        AdminResult((*admin_.*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

 private:
  Client() = default;
  struct Port {
    const std::string& address;
    absl::string_view flag;
    bool has_tls;
  };
  absl::Status ResultAt(const Port& port, const grpc::Status& status) const;

  ServerFlags flags_;
  std::string authorization_;         // metadata at clients' port; "": none
  std::unique_ptr<TlsIdentity> tls_;  // null: plain
  std::unique_ptr<TlsIdentity> admin_tls_;  // null: plain
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::ModelService::Stub> model_;
  std::unique_ptr<admin::v1::AdminService::Stub> admin_;
};

}  // namespace expertmesh
