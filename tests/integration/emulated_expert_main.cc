// expertmesh-expert-emulated: the expert service with device 0 emulated.
//
// EXPERTMESH_FAULT_AT=N in the environment: the device is lost with the N-th
// call to it from when the service serves.

#include <cstdlib>
#include <string>

#include "expert_service/expert_config.h"
#include "expert_service/expert_server.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/runtime/command_line.h"
#include "services/runtime/ready_file.h"
#include "services/runtime/server_runtime.h"
#include "services/runtime/shutdown_signals.h"
#include "tests/support/cuda_emulation/control.h"

namespace expertmesh::expert {
namespace {

constexpr char kName[] = "expertmesh-expert-emulated";

absl::StatusOr<CudaDevice> FindEmulated(int index) {
  CudaDevice device;
  device.index = index;
  device.name = "emulated";
  return device;
}

absl::Status Run(const ExpertConfig& config) {
  RETURN_IF_ERROR(CheckExpertConfig(config));
  RETURN_IF_ERROR(ApplyLogOptions("expert", config.log));
  ShutdownSignals signals;
  RouteGrpcLogs();
  ASSIGN_OR_RETURN(
      const auto server,
      ExpertServer::Start(
          config, [&signals] { signals.Request(); }, FindEmulated));
  if (const char* const call = std::getenv("EXPERTMESH_FAULT_AT")) {
    cuda_emulation::PlanFault({.call = std::stoll(call), .lasting = true});
  }
  if (!config.ready_file.empty()) {
    RETURN_IF_ERROR(WriteReadyFile(config.ready_file, server->ReadyJson()));
  }
  signals.Wait();
  server->Drain();
  return server->fault();
}

}  // namespace
}  // namespace expertmesh::expert

int main(int argc, char** argv) {
  using namespace expertmesh;
  CLI::App app("Serves experts on an emulated device.");
  expert::ExpertConfig config;
  SetupCommandLine(app, expert::kName);
  expert::AddExpertOptions(app, &config);
  if (const auto exit_code = ParseCommandLine(app, argc, argv)) {
    return *exit_code;
  }
  const absl::Status status = expert::Run(config);
  return status.ok() ? 0 : FailWith(expert::kName, status);
}
