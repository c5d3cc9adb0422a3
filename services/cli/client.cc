#include "services/cli/client.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
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

// An option that the environment may give too: --tls-ca as EXPERTMESH_TLS_CA.
CLI::Option* AddOption(CLI::App& app, const std::string& flag,
                       std::string& value, const std::string& help) {
  const std::string name = absl::AsciiStrToUpper(
      absl::StrReplaceAll(flag, {{"--", ""}, {"-", "_"}}));
  return app.add_option(flag, value, help)
      ->envname(absl::StrCat("EXPERTMESH_", name));
}

// `at` says where, beside clients' port.
void AddTlsFlags(CLI::App& app, absl::string_view at, TlsFiles& files,
                 std::string& server_name) {
  AddOption(app, absl::StrCat(files.flag, "-ca"), files.ca,
            absl::StrCat("Certificates in PEM of who signs the router's", at,
                         "; default: no TLS"))
      ->type_name("FILE");
  AddOption(app, absl::StrCat(files.flag, "-cert"), files.cert,
            absl::StrCat(
                "Certificate in PEM to show to a router that asks for one", at))
      ->type_name("FILE");
  AddOption(app, absl::StrCat(files.flag, "-key"), files.key,
            absl::StrCat("Private key of ", files.flag, "-cert"))
      ->type_name("FILE");
  AddOption(app, absl::StrCat(files.flag, "-server-name"), server_name,
            absl::StrCat("Name that the router's certificate", at,
                         " must be for; default: the address's host"))
      ->type_name("NAME");
}

absl::Status NeedsCa(absl::string_view flag, const TlsFiles& files) {
  return absl::InvalidArgumentError(absl::StrCat(
      flag, " needs ", files.flag, "-ca, for a connection with TLS"));
}

// Null: none is wanted.
absl::StatusOr<std::unique_ptr<TlsIdentity>> LoadTls(
    const TlsFiles& files, const std::string& server_name) {
  if (!files.ca.empty()) return TlsIdentity::Load(files);
  for (const auto& [what, value] :
       {std::pair("-cert", &files.cert), std::pair("-key", &files.key),
        std::pair("-server-name", &server_name)}) {
    if (!value->empty()) {
      return NeedsCa(absl::StrCat(files.flag, what), files);
    }
  }
  return nullptr;
}

// The first line that is neither empty nor a comment, as in the server's file.
absl::StatusOr<std::string> ReadToken(const std::string& path) {
  std::ifstream in(path);
  if (!in.is_open()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--token-file ", path, ": ", std::strerror(errno)));
  }
  for (std::string line; std::getline(in, line);) {
    const absl::string_view token = absl::StripAsciiWhitespace(line);
    if (!token.empty() && token[0] != '#') return std::string(token);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--token-file ", path, ": holds no token"));
}

}  // namespace

CLI::Option* AddServerFlags(CLI::App& app, ServerFlags& flags) {
  AddTlsFlags(app, "", flags.tls, flags.tls_server_name);
  AddOption(app, "--token-file", flags.token_file,
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

void AddAdminFlags(CLI::App& app, ServerFlags& flags) {
  AddOption(app, "--admin", flags.admin_address,
            "Address where the router serves operators; default: the host of "
            "--server, and the port two above")
      ->type_name("HOST:PORT")
      ->check(IsHostPort());
  AddTlsFlags(app, " at --admin", flags.admin_tls, flags.admin_tls_server_name);
}

absl::StatusOr<Client> Client::Create(const ServerFlags& flags) {
  Client client;
  client.flags_ = flags;
  if (flags.admin_address.empty()) {
    ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(flags.address));
    client.flags_.admin_address = DefaultAdminAddress(address).ToString();
  }
  ASSIGN_OR_RETURN(client.tls_, LoadTls(flags.tls, flags.tls_server_name));
  ASSIGN_OR_RETURN(client.admin_tls_,
                   LoadTls(flags.admin_tls, flags.admin_tls_server_name));
  if (!flags.token_file.empty()) {
    if (client.tls_ == nullptr) return NeedsCa("--token-file", flags.tls);
    ASSIGN_OR_RETURN(const std::string token, ReadToken(flags.token_file));
    client.authorization_ = absl::StrCat("Bearer ", token);
  }
  const auto channel =
      MakeChannel(flags.address, flags.tls_server_name, client.tls_.get());
  client.generation_ = v1::GenerationService::NewStub(channel);
  client.model_ = v1::ModelService::NewStub(channel);
  client.admin_ = admin::v1::AdminService::NewStub(
      MakeChannel(client.flags_.admin_address, flags.admin_tls_server_name,
                  client.admin_tls_.get()));
  return client;
}

void Client::Prepare(grpc::ClientContext& context) const {
  if (!authorization_.empty()) {
    context.AddMetadata("authorization", authorization_);
  }
  PrepareAdmin(context);
}

void Client::PrepareAdmin(grpc::ClientContext& context) const {
  if (!flags_.timeout_seconds) return;
  context.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          std::chrono::duration<double>(*flags_.timeout_seconds)));
}

absl::Status Client::ResultAt(const Port& port,
                              const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string& message = status.error_message();
  if (absl::StartsWith(message, "failed to connect") ||
      absl::StartsWith(message, "DNS resolution failed")) {
    return absl::Status(
        code, absl::StrCat("cannot reach a router at ", port.address,
                           "; start one with `expertmesh serve --model DIR` or "
                           "name another with ",
                           port.flag,
                           port.has_tls ? absl::StrCat(": ", message) : ""));
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
