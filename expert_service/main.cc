// expertmesh-expert: serves the experts of a model to routers.

#include <signal.h>
#include <sys/prctl.h>

#include "absl/status/status.h"
#include "expert_service/expert_config.h"
#include "expert_service/expert_server.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/runtime/command_line.h"
#include "services/runtime/ready_file.h"
#include "services/runtime/server_runtime.h"
#include "services/runtime/shutdown_signals.h"

namespace expertmesh::expert {
namespace {

constexpr char kName[] = "expertmesh-expert";

absl::Status Run(const ExpertConfig& config) {
  RETURN_IF_ERROR(CheckExpertConfig(config));
  RETURN_IF_ERROR(ApplyLogOptions("expert", config.log));
  ShutdownSignals signals;  // before the first thread
  if (config.exit_with_parent) prctl(PR_SET_PDEATHSIG, SIGTERM);
  RouteGrpcLogs();
  ASSIGN_OR_RETURN(const auto server, ExpertServer::Start(config));
  if (!config.ready_file.empty()) {
    RETURN_IF_ERROR(WriteReadyFile(config.ready_file, server->ReadyJson()));
  }
  signals.Wait();
  server->Drain();
  return absl::OkStatus();
}

}  // namespace
}  // namespace expertmesh::expert

int main(int argc, char** argv) {
  using namespace expertmesh;
  CLI::App app("Serves the experts of a Mixture-of-Experts model to routers.");
  expert::ExpertConfig config;
  SetupCommandLine(app, expert::kName);
  expert::AddExpertOptions(app, &config);
  if (const auto exit_code = ParseCommandLine(app, argc, argv)) {
    return *exit_code;
  }
  const absl::Status status = expert::Run(config);
  return status.ok() ? 0 : FailWith(expert::kName, status);
}
