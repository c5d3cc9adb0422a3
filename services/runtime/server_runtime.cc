#include "services/runtime/server_runtime.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <mutex>

#include "services/core/log.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

// Process-wide switches of gRPC, which the next server built heeds.
void InitGrpcPlugins() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

void SetChannelArguments(grpc::ServerBuilder& builder) {
  // A taken port must be an error: with SO_REUSEPORT two servers would share
  // it and each get a part of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Long-lived streams are probed from both ends; a peer that pings often is
  // welcome.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
}

}  // namespace

void RouteGrpcLogs() {
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  gpr_set_log_function([](gpr_log_func_args* args) {
    Log(LogLevel::kDebug, args->message, {{"source", "grpc"}});
  });
  google::protobuf::SetLogHandler([](google::protobuf::LogLevel level,
                                     const char*, int,
                                     const std::string& message) {
    // After a fatal one the library ends the process.
    Log(level == google::protobuf::LOGLEVEL_FATAL ? LogLevel::kError
                                                  : LogLevel::kDebug,
        message, {{"source", "protobuf"}});
  });
}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(
    const GrpcServerOptions& options,
    absl::Span<grpc::Service* const> services) {
  ASSIGN_OR_RETURN(HostPort address, ResolveListenAddress(options.listen));
  InitGrpcPlugins();
  grpc::ServerBuilder builder;
  SetChannelArguments(builder);
  builder.SetMaxReceiveMessageSize(options.max_receive_bytes);
  if (options.connection_age != absl::InfiniteDuration()) {
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONNECTION_AGE_MS,
        static_cast<int>(absl::ToInt64Milliseconds(options.connection_age)));
  }
  int port = 0;
  builder.AddListeningPort(address.ToString(),
                           options.credentials != nullptr
                               ? options.credentials
                               : grpc::InsecureServerCredentials(),
                           &port);
  for (grpc::Service* service : services) builder.RegisterService(service);

  auto result = std::unique_ptr<GrpcServer>(
      new GrpcServer(address, options.health_names));
  result->server_ = builder.BuildAndStart();
  if (result->server_ == nullptr || port <= 0) return ListenError(address);
  result->address_.port = port;
  if (!options.health_listen.empty()) {
    GrpcServerOptions health;
    health.listen = options.health_listen;
    health.health_names = options.health_names;
    ASSIGN_OR_RETURN(result->health_, Start(health, {}));
  }
  result->SetServing(false);  // gRPC starts "" as SERVING
  result->SetServing(kLiveHealth, true);
  return result;
}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

void GrpcServer::SetServing(const std::string& health_name, bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(health_name, serving);
  if (health_ != nullptr) health_->SetServing(health_name, serving);
}

void GrpcServer::SetServing(bool serving) {
  SetServing("", serving);
  for (const std::string& name : health_names_) SetServing(name, serving);
}

void GrpcServer::Shutdown(absl::Duration deadline) {
  if (server_ == nullptr) return;  // Start failed
  server_->GetHealthCheckService()->Shutdown();
  if (health_ != nullptr) health_->SetServing(false);
  server_->Shutdown(std::chrono::system_clock::now() +
                    absl::ToChronoMilliseconds(deadline));
  server_->Wait();
  if (health_ != nullptr) health_->Shutdown(absl::ZeroDuration());
}

}  // namespace expertmesh
