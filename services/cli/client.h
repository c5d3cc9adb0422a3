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

namespace expertmesh {

struct ServerFlags {
  std::string address = "127.0.0.1:50051";
  std::optional<double> timeout_seconds;
};
// --server and --timeout; returns the option of --server.
CLI::Option* AddServerFlags(CLI::App& app, ServerFlags& flags);

// One channel to a router. Thread-safe.
class Client {
 public:
  explicit Client(const ServerFlags& flags);

  v1::GenerationService::Stub& generation() { return *generation_; }
  v1::ModelService::Stub& model() { return *model_; }
  admin::v1::AdminService::Stub& admin() { return *admin_; }

  // Sets the deadline of a new call.
  void Prepare(grpc::ClientContext& context) const;

  // The status of a finished call, with a message for people.
  absl::Status Result(const grpc::Status& status) const;

  // One call of the admin API.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Ask(
      grpc::Status (admin::v1::AdminService::Stub::*method)(
          grpc::ClientContext*, const Request&, Response*),
      const Request& request) {
    grpc::ClientContext context;
    Prepare(context);
    Response response;
    const absl::Status status =
        Result((*admin_.*method)(&context, request, &response));
    if (!status.ok()) return status;
    return response;
  }

 private:
  const ServerFlags flags_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::ModelService::Stub> model_;
  std::unique_ptr<admin::v1::AdminService::Stub> admin_;
};

}  // namespace expertmesh
