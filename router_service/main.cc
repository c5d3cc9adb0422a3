// expertmesh-router: embedding, attention, gating, sampling and the KV cache.

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "router_service/router_config.h"
#include "router_service/router_server.h"
#include "services/runtime/command_line.h"
#include "services/runtime/server_runtime.h"
#include "services/runtime/shutdown_signals.h"

int main(int argc, char** argv) {
  using namespace expertmesh;
  const pid_t parent = getppid();
  constexpr const char* kName = "expertmesh-router";

  CLI::App app(
      "Serves a Mixture-of-Experts model whose experts run in expert "
      "services.");
  router::RouterConfig config;
  SetupCommandLine(app, kName);
  router::AddRouterOptions(app, &config);
  if (const auto exit_code = ParseCommandLine(app, argc, argv)) {
    return *exit_code;
  }
  if (absl::Status status = ApplyLogOptions("router", config.log);
      !status.ok()) {
    return FailWith(kName, status);
  }
  if (config.exit_with_parent) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    // It may have ended before the call.
    if (getppid() != parent) return 0;
  }
  ShutdownSignals signals;
  RouteGrpcLogs();
  auto server = router::RouterServer::Start(config);
  if (!server.ok()) return FailWith(kName, server.status());
  const absl::Status status = (*server)->ServeUntil(&signals);
  return status.ok() ? 0 : FailWith(kName, status);
}
