#include "services/cli/client.h"

#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/cli/flags.h"

namespace expertmesh {
namespace {

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  // Responses with log-probabilities of a whole prompt pass the default limit.
  arguments.SetMaxReceiveMessageSize(-1);
  // Addresses of a mesh are meant as they are written.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                   arguments);
}

}  // namespace

CLI::Option* AddServerFlags(CLI::App& app, ServerFlags& flags) {
  app.add_option("--timeout", flags.timeout_seconds,
                 "Seconds a call may take; default: no limit")
      ->type_name("SECONDS")
      ->check(IsPositive());
  return app.add_option("--server", flags.address, "Address of the router")
      ->type_name("HOST:PORT")
      ->check(IsHostPort())
      ->capture_default_str();
}

Client::Client(const ServerFlags& flags) : flags_(flags) {
  const std::shared_ptr<grpc::Channel> channel = MakeChannel(flags.address);
  generation_ = v1::GenerationService::NewStub(channel);
  model_ = v1::ModelService::NewStub(channel);
  admin_ = admin::v1::AdminService::NewStub(channel);
}

void Client::Prepare(grpc::ClientContext& context) const {
  if (!flags_.timeout_seconds) return;
  context.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          std::chrono::duration<double>(*flags_.timeout_seconds)));
}

absl::Status Client::Result(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string& message = status.error_message();
  if (absl::StartsWith(message, "failed to connect") ||
      absl::StartsWith(message, "DNS resolution failed")) {
    return absl::Status(
        code, absl::StrCat("cannot reach a router at ", flags_.address,
                           "; start one with `expertmesh serve --model DIR` or "
                           "name another with --server"));
  }
  if (code == absl::StatusCode::kDeadlineExceeded) {
    return absl::Status(code, absl::StrCat("no answer within ",
                                           flags_.timeout_seconds.value_or(0),
                                           " s; allow more with --timeout"));
  }
  return absl::Status(
      code, absl::StrCat(message, " (", absl::StatusCodeToString(code), ")"));
}

}  // namespace expertmesh
