#include "services/cli/launcher_service.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "expertmesh/launcher/v1/launcher.grpc.pb.h"
#include "services/cli/run_folder.h"
#include "services/wire/status_codec.h"

namespace expertmesh {

std::string LauncherSocket(const std::string& run_folder) {
  return absl::StrCat(run_folder, "/launcher.sock");
}

std::vector<std::string> LauncherSockets() {
  std::vector<std::string> sockets;
  for (const std::string& folder : RunFolder::Living()) {
    std::string socket = LauncherSocket(folder);
    if (access(socket.c_str(), F_OK) == 0) sockets.push_back(std::move(socket));
  }
  return sockets;
}

class LauncherServer::Service final
    : public launcher::v1::LauncherService::Service {
 public:
  explicit Service(PoolScaler* scaler) : scaler_(*scaler) {}

  grpc::Status ScalePools(
      grpc::ServerContext* context,
      const launcher::v1::ScalePoolsRequest* request,
      grpc::ServerWriter<launcher::v1::ScalePoolsResponse>* writer) override {
    std::vector<PoolSize> targets;
    for (const launcher::v1::PoolSize& pool : request->pools()) {
      targets.push_back({pool.pool(), pool.services()});
    }
    const auto running =
        scaler_.Scale(targets, [&](const std::string& progress) {
          launcher::v1::ScalePoolsResponse response;
          response.set_progress(progress);
          writer->Write(response);
        });
    if (!running.ok()) return ToGrpcStatus(running.status());
    launcher::v1::ScalePoolsResponse last;
    for (const PoolScaler::Running& one : *running) {
      launcher::v1::LaunchedPool& pool = *last.add_pools();
      pool.set_name(one.pool);
      for (const std::string& address : one.addresses) {
        pool.add_addresses(address);
      }
    }
    writer->Write(last);
    return grpc::Status::OK;
  }

 private:
  PoolScaler& scaler_;
};

LauncherServer::LauncherServer() = default;

absl::StatusOr<std::unique_ptr<LauncherServer>> LauncherServer::Start(
    const std::string& socket, PoolScaler* scaler) {
  auto out = std::unique_ptr<LauncherServer>(new LauncherServer());
  out->service_ = std::make_unique<Service>(scaler);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(absl::StrCat("unix:", socket),
                           grpc::InsecureServerCredentials());
  builder.RegisterService(out->service_.get());
  out->server_ = builder.BuildAndStart();
  if (out->server_ != nullptr) return out;
  return absl::UnavailableError(absl::StrCat("cannot listen on ", socket,
                                             "; set TMPDIR to a shorter path"));
}

LauncherServer::~LauncherServer() {
  if (server_ != nullptr) server_->Shutdown();
}

}  // namespace expertmesh
