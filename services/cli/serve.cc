// `expertmesh serve`: a router and its expert services as local processes.

#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/expert_range.h"
#include "services/cli/command.h"
#include "services/cli/flags.h"
#include "services/cli/launcher_service.h"
#include "services/cli/local_mesh.h"
#include "services/cli/local_pools.h"
#include "services/cli/pool_scaler.h"
#include "services/cli/start_progress.h"
#include "services/cli/supervisor.h"
#include "services/cli/terminal.h"
#include "services/core/status_macros.h"
#include "services/core/worker_pool.h"
#include "services/mesh/mesh_config.h"
#include "services/runtime/ready_file.h"

namespace expertmesh {
namespace {

constexpr int64_t kMostDefaultServices = 4;

// What a service has to end beyond its router's --drain-timeout.
constexpr absl::Duration kStopTimeout = absl::Seconds(10);

struct ServeFlags {
  LocalMesh mesh;
  std::optional<int64_t> expert_services;
  int64_t replicas = 1;
  int64_t managed_services = 0;
  std::string managed_memory = "256MiB";
  std::string mesh_config;
  std::string ready_file;
};

void AddFlags(CLI::App& app, ServeFlags& flags) {
  LocalMesh& mesh = flags.mesh;
  app.add_option("--model", mesh.model, "Checkpoint folder (Hugging Face form)")
      ->type_name("DIR")
      ->required();
  CLI::Option* const services =
      app.add_option("--expert-services", flags.expert_services,
                     "Expert services to start; default: one for every two "
                     "CPUs, and four at most")
          ->type_name("N")
          ->check(IsWholeNumber(1));
  CLI::Option* const replicas =
      app.add_option("--replicas", flags.replicas,
                     "Services that hold each expert; with more than one, a "
                     "lost service fails no request")
          ->type_name("R")
          ->check(IsWholeNumber(1))
          ->capture_default_str();
  CLI::Option* const managed =
      app.add_option("--managed-services", flags.managed_services,
                     "Services besides that start empty and are given copies "
                     "of hot experts; see --rebalance and `expertmesh "
                     "placement`")
          ->type_name("N")
          ->check(CLI::NonNegativeNumber.description(""))
          ->capture_default_str();
  app.add_option("--managed-memory", flags.managed_memory,
                 "What experts may take in each of these, and in managed "
                 "services of a mesh file that names no budget")
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--mesh-config", flags.mesh_config,
                 "Mesh file: start minReplicas services, and at least one, of "
                 "each pool that has no target there; those with a target are "
                 "only connected to. `expertmesh scale` changes their number")
      ->type_name("FILE")
      ->excludes(services)
      ->excludes(replicas)
      ->excludes(managed);
  app.add_option("--listen", mesh.listen,
                 "Where the router serves clients; port 0: any free one")
      ->type_name("HOST:PORT")
      ->check(IsHostPort())
      ->capture_default_str();
  app.add_option("--admin-listen", mesh.admin_listen,
                 "Where the router serves operators; default: 127.0.0.1, and "
                 "the port two above that of --listen")
      ->type_name("HOST:PORT")
      ->check(IsHostPort());
  app.add_option("--metrics-listen", mesh.metrics_listen,
                 "Where the router serves /metrics")
      ->type_name("HOST:PORT")
      ->check(IsHostPort())
      ->capture_default_str();
  app.add_option("--ready-file", flags.ready_file,
                 "Written as JSON once ready: addresses and process ids")
      ->type_name("FILE");
  AddPassedOnFlags(app, mesh);
}

// Found now, not after the services have loaded the model.
absl::Status CheckReadyFile(const std::string& path) {
  const std::filesystem::path folder =
      std::filesystem::absolute(path).parent_path();
  if (access(folder.c_str(), W_OK) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("cannot write --ready-file ", path, ": ", strerror(errno)));
}

void PrintLine(absl::string_view line) {
  const std::string whole = absl::StrCat(line, "\n");
  fwrite(whole.data(), 1, whole.size(), stderr);
}

// Of the running mesh.
ServiceStatus Router(const Supervisor& supervisor) {
  for (ServiceStatus& service : supervisor.services()) {
    if (service.pool.empty()) return std::move(service);
  }
  return {};
}

nlohmann::ordered_json ReadyJson(const Supervisor& supervisor,
                                 const std::string& launcher) {
  const ServiceStatus router = Router(supervisor);
  nlohmann::ordered_json json;
  json["grpc"] = router.info->grpc;
  json["admin"] = router.info->admin;
  json["metrics"] = router.info->metrics;
  json["router_pid"] = router.pid;
  if (!launcher.empty()) json["launcher"] = launcher;
  json["experts"] = nlohmann::ordered_json::array();
  for (const ServiceStatus& service : supervisor.services()) {
    // Not the router, nor one that starts.
    if (service.pool.empty() || !service.info) continue;
    json["experts"].push_back({{"pool", service.pool},
                               {"address", service.info->grpc},
                               {"pid", service.pid},
                               {"metrics", service.info->metrics}});
  }
  return json;
}

std::vector<std::string> Addresses(const Supervisor& supervisor,
                                   absl::string_view pool) {
  std::vector<std::string> addresses;
  for (const ServiceStatus& service : supervisor.services()) {
    if (service.pool == pool) addresses.push_back(service.info->grpc);
  }
  return addresses;
}

// A layer waits for the slowest of its services, so those with one thread each
// lose more by waiting for a CPU than they gain by being several.
int64_t NumExpertServices(const ServeFlags& flags, int64_t num_experts) {
  if (flags.expert_services) return *flags.expert_services;
  const int64_t by_cpus =
      std::clamp<int64_t>(AvailableCpus() / 2, 1, kMostDefaultServices);
  return std::min(std::max(by_cpus, flags.replicas), num_experts);
}

void DivideCpus(int64_t num_services, LocalMesh* mesh) {
  if (mesh->expert_threads) return;
  mesh->expert_threads = std::max<int64_t>(
      1, AvailableCpus() / std::max<int64_t>(1, num_services));
}

StartProgress MakeStartProgress() {
  StartProgress::Options options;
  if (isatty(STDERR_FILENO)) options.show = ShowProgress;
  options.print = PrintLine;
  return StartProgress(std::move(options));
}

absl::Status StartExperts(std::vector<ServiceSpec> specs,
                          Supervisor& supervisor, StartProgress& progress) {
  progress.Begin(absl::StrCat("starting ", specs.size(), " expert service",
                              specs.size() == 1 ? "" : "s"));
  RETURN_IF_ERROR(supervisor.Start(std::move(specs)));
  progress.Begin("starting the router");
  return absl::OkStatus();
}

// Every expert on --replicas of --expert-services, and managed ones besides.
absl::Status StartSpread(const ServeFlags& flags, LocalMesh mesh,
                         int64_t num_experts, Supervisor& supervisor,
                         StartProgress& progress) {
  const int64_t num_services = NumExpertServices(flags, num_experts);
  if (num_services > num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("--expert-services ", num_services, ": the model has ",
                     num_experts, " experts; ask for at most as many"));
  }
  ASSIGN_OR_RETURN(const auto holdings,
                   SpreadExperts(num_experts, num_services, flags.replicas));
  DivideCpus(num_services + flags.managed_services, &mesh);
  std::vector<ServiceSpec> experts;
  for (const std::vector<int64_t>& held : holdings) {
    experts.push_back(mesh.ExpertSpec(held));
  }
  for (int64_t i = 0; i < flags.managed_services; ++i) {
    experts.push_back(mesh.ManagedSpec(flags.managed_memory));
  }
  RETURN_IF_ERROR(StartExperts(std::move(experts), supervisor, progress));
  return supervisor.Start({mesh.RouterSpec(
      {"--experts-at",
       absl::StrJoin(Addresses(supervisor, kStaticPoolName), ",")})});
}

// The pools of --mesh-config.
absl::StatusOr<LocalPools> StartPools(const ServeFlags& flags, LocalMesh mesh,
                                      const ModelConfig& model,
                                      Supervisor& supervisor,
                                      StartProgress& progress) {
  ASSIGN_OR_RETURN(MeshConfig config,
                   ReadMeshFile(flags.mesh_config, model, Targets::kOptional));
  DivideCpus(LocalPools::NumFirst(config), &mesh);
  absl::StatusOr<LocalPools> pools =
      LocalPools::Create(std::move(config), model, mesh, flags.managed_memory,
                         supervisor.folder());
  if (!pools.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.mesh_config, ": ", pools.status().message()));
  }
  RETURN_IF_ERROR(StartExperts(pools->AllSpecs(), supervisor, progress));
  for (const LocalPool& pool : pools->pools()) {
    RETURN_IF_ERROR(
        pools->WriteAddresses(pool, Addresses(supervisor, pool.config.name)));
  }
  RETURN_IF_ERROR(pools->WriteMeshFile());
  RETURN_IF_ERROR(supervisor.Start(
      {mesh.RouterSpec({"--mesh-config", pools->mesh_file(), "--control"})}));
  return pools;
}

// Keeps what runs running. With a scaler, other processes may change it.
absl::Status Watch(const ServeFlags& flags, Supervisor& supervisor,
                   PoolScaler* scaler) {
  std::string launcher;
  std::unique_ptr<LauncherServer> server;
  if (scaler != nullptr) {
    launcher = LauncherSocket(supervisor.folder());
    ASSIGN_OR_RETURN(server, LauncherServer::Start(launcher, scaler));
  }
  const auto write_ready_file = [&]() -> absl::Status {
    if (flags.ready_file.empty()) return absl::OkStatus();
    return WriteReadyFile(flags.ready_file,
                          ReadyJson(supervisor, launcher).dump());
  };
  RETURN_IF_ERROR(write_ready_file());
  const ServiceStatus router = Router(supervisor);
  const size_t num_experts = supervisor.services().size() - 1;
  PrintLine(absl::StrCat(
      "expertmesh: serving ", flags.mesh.model, " at ", router.info->grpc, " (",
      num_experts, num_experts == 1 ? " expert service" : " expert services",
      ", metrics at ", router.info->metrics, ")"));
  supervisor.Watch([&] {
    const absl::Status written = write_ready_file();
    if (!written.ok()) {
      PrintLine(absl::StrCat("expertmesh: ", written.message()));
    }
  });
  if (!flags.ready_file.empty()) unlink(flags.ready_file.c_str());
  return absl::OkStatus();
}

absl::Status Run(const ServeFlags& flags) {
  // A file of an earlier run would tell waiting scripts the wrong address.
  if (!flags.ready_file.empty()) {
    RETURN_IF_ERROR(CheckReadyFile(flags.ready_file));
    unlink(flags.ready_file.c_str());
  }
  LocalMesh mesh = flags.mesh;
  ModelConfig model;
  {
    ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(mesh.model));
    model = checkpoint->config();
  }
  RETURN_IF_ERROR(mesh.FindBinaries());

  Supervisor::Options options;
  double drain_seconds = 0;  // the router says what is wrong with it
  if (absl::SimpleAtod(mesh.router_flags["--drain-timeout"], &drain_seconds)) {
    options.stop_timeout =
        kStopTimeout + absl::Seconds(std::max(drain_seconds, 0.0));
  }
  options.print_line = PrintLine;
  StartProgress progress = MakeStartProgress();
  options.on_load = [&](pid_t service, LoadedBytes bytes) {
    progress.OnLoad(service, bytes);
  };
  ASSIGN_OR_RETURN(const auto supervisor,
                   Supervisor::Create(std::move(options)));
  std::unique_ptr<PoolScaler> scaler;
  absl::Status started;
  if (flags.mesh_config.empty()) {
    started =
        StartSpread(flags, mesh, model.num_experts, *supervisor, progress);
  } else {
    auto pools = StartPools(flags, mesh, model, *supervisor, progress);
    started = pools.status();
    if (pools.ok()) {
      scaler = std::make_unique<PoolScaler>(*std::move(pools), supervisor.get(),
                                            Router(*supervisor).info->admin);
    }
  }
  progress.End();
  if (absl::IsCancelled(started)) return absl::OkStatus();
  RETURN_IF_ERROR(started);
  RETURN_IF_ERROR(Watch(flags, *supervisor, scaler.get()));
  supervisor->Stop();
  return absl::OkStatus();
}

}  // namespace

Command ServeCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "serve", "Run a router and expert services on this machine");
  auto flags = std::make_shared<ServeFlags>();
  AddFlags(*app, *flags);
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace expertmesh
