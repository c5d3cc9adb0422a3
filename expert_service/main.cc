// expertmesh-expert: serves the experts of a model to routers.

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdlib>

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

// `parent`: the process that started this one.
absl::Status Run(const ExpertConfig& config, pid_t parent) {
  RETURN_IF_ERROR(ApplyLogOptions("expert", config.log));
  RETURN_IF_ERROR(CheckExpertConfig(config));
  ShutdownSignals signals;  // before the first thread
  if (config.exit_with_parent) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    // It may have ended before the call.
    if (getppid() != parent) return absl::OkStatus();
  }
  RouteGrpcLogs();
  ASSIGN_OR_RETURN(const auto server, ExpertServer::Start(config, [&signals] {
                     signals.Request();
                   }));
  if (!config.ready_file.empty()) {
    RETURN_IF_ERROR(WriteReadyFile(config.ready_file, server->ReadyJson()));
  }
  signals.Wait();
  server->Drain();
  const absl::Status fault = server->fault();
  if (fault.ok()) return fault;
  // For a supervisor to start the process again. A lost device may not even
  // take its memory back.
  std::_Exit(FailWith(kName, fault));
}

}  // namespace
}  // namespace expertmesh::expert

int main(int argc, char** argv) {
  using namespace expertmesh;
  const pid_t parent = getppid();
  CLI::App app("Serves the experts of a Mixture-of-Experts model to routers.");
  expert::ExpertConfig config;
  SetupCommandLine(app, expert::kName);
  expert::AddExpertOptions(app, &config);
  if (const auto exit_code = ParseCommandLine(app, argc, argv)) {
    return *exit_code;
  }
  const absl::Status status = expert::Run(config, parent);
  return status.ok() ? 0 : FailWith(expert::kName, status);
}
