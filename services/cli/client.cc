#include "services/cli/client.h"

#include <chrono>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/cli/flags.h"
#include "services/core/status_macros.h"
#include "services/runtime/address.h"

namespace expertmesh {
namespace {

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           const std::string& tls_server_name,
                                           const TlsIdentity* tls) {
  grpc::ChannelArguments arguments;
  if (!tls_server_name.empty()) {
    arguments.SetSslTargetNameOverride(tls_server_name);
  }
  // Responses with log-probabilities of a whole prompt pass the default limit.
  arguments.SetMaxReceiveMessageSize(-1);
  // Addresses of a mesh are meant as they are written.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, ChannelCredentials(tls), arguments);
}

// The first line that is neither empty nor a comment, as in the server's file.
absl::StatusOr<std::string> ReadToken(const std::string& path) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const absl::string_view token = absl::StripAsciiWhitespace(line);
    if (!token.empty() && token[0] != '#') return std::string(token);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--token-file ", path, ": holds no token"));
}

}  // namespace

CLI::Option* AddServerFlags(CLI::App& app, ServerFlags& flags) {
  app.add_option("--tls-ca", flags.tls.ca,
                 "Certificates in PEM of who signs the router's; default: no "
                 "TLS")
      ->type_name("FILE");
  app.add_option("--tls-cert", flags.tls.cert,
                 "Certificate in PEM to show to a router that asks for one")
      ->type_name("FILE");
  app.add_option("--tls-key", flags.tls.key, "Private key of --tls-cert")
      ->type_name("FILE");
  app.add_option("--tls-server-name", flags.tls_server_name,
                 "Name that the router's certificate must be for; default: the "
                 "address's host")
      ->type_name("NAME");
  app.add_option("--token-file", flags.token_file,
                 "File with the bearer token to send; needs --tls-ca")
      ->type_name("FILE");
  app.add_option("--timeout", flags.timeout_seconds,
                 "Seconds a call may take; default: no limit")
      ->type_name("SECONDS")
      ->check(IsPositive());
  return app.add_option("--server", flags.address, "Address of the router")
      ->type_name("HOST:PORT")
      ->check(IsHostPort())
      ->capture_default_str();
}

void AddAdminFlag(CLI::App& app, ServerFlags& flags) {
  app.add_option("--admin", flags.admin_address,
                 "Address where the router serves operators; default: the host "
                 "of --server, and the port two above")
      ->type_name("HOST:PORT")
      ->check(IsHostPort());
}

absl::StatusOr<Client> Client::Create(const ServerFlags& flags) {
  Client client;
  client.flags_ = flags;
  if (flags.admin_address.empty()) {
    ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(flags.address));
    client.flags_.admin_address = DefaultAdminAddress(address).ToString();
  }
  if (flags.tls.ca.empty() &&
      !(flags.tls.cert.empty() && flags.token_file.empty())) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.tls.cert.empty() ? "--token-file" : "--tls-cert",
                     " needs --tls-ca, for a connection with TLS"));
  }
  if (flags.tls.any()) {
    ASSIGN_OR_RETURN(client.tls_, TlsIdentity::Load(flags.tls));
  }
  if (!flags.token_file.empty()) {
    ASSIGN_OR_RETURN(const std::string token, ReadToken(flags.token_file));
    client.authorization_ = absl::StrCat("Bearer ", token);
  }
  const auto channel =
      MakeChannel(flags.address, flags.tls_server_name, client.tls_.get());
  client.generation_ = v1::GenerationService::NewStub(channel);
  client.model_ = v1::ModelService::NewStub(channel);
  client.admin_ = admin::v1::AdminService::NewStub(MakeChannel(
      client.flags_.admin_address, flags.tls_server_name, client.tls_.get()));
  return client;
}

void Client::Prepare(grpc::ClientContext& context) const {
  if (!authorization_.empty()) {
    context.AddMetadata("authorization", authorization_);
  }
  if (!flags_.timeout_seconds) return;
  context.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          std::chrono::duration<double>(*flags_.timeout_seconds)));
}

absl::Status Client::ResultAt(const std::string& address,
                              absl::string_view flag,
                              const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string& message = status.error_message();
  if (absl::StartsWith(message, "failed to connect") ||
      absl::StartsWith(message, "DNS resolution failed")) {
    return absl::Status(
        code, absl::StrCat("cannot reach a router at ", address,
                           "; start one with `expertmesh serve --model DIR` or "
                           "name another with ",
                           flag));
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
