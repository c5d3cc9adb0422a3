// `expertmesh scale`: makes pools of a running `expertmesh serve` larger or
// smaller.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "expertmesh/launcher/v1/launcher.grpc.pb.h"
#include "services/cli/command.h"
#include "services/cli/flags.h"
#include "services/cli/launcher_service.h"
#include "services/cli/terminal.h"
#include "services/core/status_macros.h"
#include "services/wire/status_codec.h"

namespace expertmesh {
namespace {

struct ScaleFlags {
  std::vector<std::string> sizes;
  std::string launcher;
};

// The socket of the only launcher there is.
absl::StatusOr<std::string> FindLauncher() {
  const std::vector<std::string> sockets = LauncherSockets();
  if (sockets.size() == 1) return sockets.front();
  if (sockets.empty()) {
    return absl::UnavailableError(
        "no `expertmesh serve --mesh-config` of yours runs on this machine");
  }
  return absl::FailedPreconditionError(
      absl::StrCat("several meshes run on this machine; choose by --launcher ",
                   absl::StrJoin(sockets, " or ")));
}

absl::Status Result(const grpc::Status& status, const std::string& socket) {
  if (absl::StartsWith(status.error_message(), "failed to connect")) {
    return absl::UnavailableError(
        absl::StrCat("no launcher answers at ", socket));
  }
  return FromGrpcStatus(status);
}

absl::Status Run(const ScaleFlags& flags) {
  launcher::v1::ScalePoolsRequest request;
  for (const std::string& text : flags.sizes) {
    ASSIGN_OR_RETURN(const PoolSize size, ParsePoolSize(text));
    launcher::v1::PoolSize& pool = *request.add_pools();
    pool.set_pool(size.pool);
    pool.set_services(size.services);
  }
  std::string socket = flags.launcher;
  if (socket.empty()) {
    ASSIGN_OR_RETURN(socket, FindLauncher());
  }
  const auto stub = launcher::v1::LauncherService::NewStub(grpc::CreateChannel(
      absl::StrCat("unix:", socket), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const auto stream = stub->ScalePools(&context, request);
  launcher::v1::ScalePoolsResponse response;
  while (stream->Read(&response)) ShowProgress(response.progress());
  const grpc::Status status = stream->Finish();
  ShowProgress("");
  RETURN_IF_ERROR(Result(status, socket));
  for (const launcher::v1::LaunchedPool& pool : response.pools()) {
    WriteOut(absl::StrCat(pool.name(), "\t", pool.addresses_size(), "\t",
                          absl::StrJoin(pool.addresses(), ","), "\n"));
  }
  return absl::OkStatus();
}

}  // namespace

Command ScaleCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "scale",
      "Start or end services of pools of a running `serve --mesh-config`; "
      "prints the pools");
  auto flags = std::make_shared<ScaleFlags>();
  app->add_option("POOL=N", flags->sizes,
                  "How many services a pool shall have; none: only print what "
                  "runs")
      ->check(IsPoolSize());
  app->add_option("--launcher", flags->launcher,
                  "Socket of the launcher, as the ready file of `serve` names "
                  "it; default: that of the only one")
      ->type_name("SOCKET");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace expertmesh
