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
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/checkpoint/checkpoint.h"
#include "services/checkpoint/expert_range.h"
#include "services/cli/command.h"
#include "services/cli/flags.h"
#include "services/cli/local_mesh.h"
#include "services/cli/supervisor.h"
#include "services/core/status_macros.h"
#include "services/runtime/ready_file.h"

namespace expertmesh {
namespace {

constexpr int64_t kDefaultExpertServices = 4;

struct ServeFlags {
  LocalMesh mesh;
  std::optional<int64_t> expert_services;
  int64_t replicas = 1;
  int64_t managed_services = 0;
  std::string managed_memory = "256MiB";
  std::string ready_file;
};

void AddFlags(CLI::App& app, ServeFlags& flags) {
  LocalMesh& mesh = flags.mesh;
  app.add_option("--model", mesh.model, "Checkpoint folder (Hugging Face form)")
      ->type_name("DIR")
      ->required();
  app.add_option("--expert-services", flags.expert_services,
                 "Expert services to start; default: 4, or fewer where there "
                 "are fewer experts")
      ->type_name("N")
      ->check(IsWholeNumber(1));
  app.add_option("--replicas", flags.replicas,
                 "Services that hold each expert; with more than one, a lost "
                 "service fails no request")
      ->type_name("R")
      ->check(IsWholeNumber(1))
      ->capture_default_str();
  app.add_option("--managed-services", flags.managed_services,
                 "Services besides that start empty and are given copies of "
                 "hot experts; see --rebalance and `expertmesh placement`")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber.description(""))
      ->capture_default_str();
  app.add_option("--managed-memory", flags.managed_memory,
                 "What experts may take in each of these")
      ->type_name("BYTES")
      ->capture_default_str();
  app.add_option("--listen", mesh.listen,
                 "Where the router serves clients; port 0: any free one")
      ->type_name("HOST:PORT")
      ->check(IsHostPort())
      ->capture_default_str();
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

// Shows what goes on while stderr is a terminal; there it is one line that the
// next one replaces, so that nothing but an error is left when a start fails.
void ShowProgress(absl::string_view text) {
  if (!isatty(STDERR_FILENO)) return;
  const std::string line = absl::StrCat("\r\033[K", text);
  fwrite(line.data(), 1, line.size(), stderr);
}

void PrintLine(absl::string_view line) {
  const std::string whole = absl::StrCat(line, "\n");
  fwrite(whole.data(), 1, whole.size(), stderr);
}

// The services of a running mesh: all expert services, then the router.
nlohmann::ordered_json ReadyJson(const Supervisor& supervisor) {
  const auto& services = supervisor.services();
  const SupervisedService& router = *services.back();
  nlohmann::ordered_json json;
  json["grpc"] = router.info()->grpc;
  json["metrics"] = router.info()->metrics;
  json["router_pid"] = router.pid();
  json["experts"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i + 1 < services.size(); ++i) {
    const SupervisedService& expert = *services[i];
    json["experts"].push_back({{"address", expert.info()->grpc},
                               {"pid", expert.pid()},
                               {"metrics", expert.info()->metrics}});
  }
  return json;
}

absl::Status StartAll(Supervisor& supervisor, const ServeFlags& flags,
                      const LocalMesh& mesh,
                      absl::Span<const std::vector<int64_t>> holdings) {
  ShowProgress(absl::StrCat("starting ",
                            holdings.size() + flags.managed_services,
                            " expert services"));
  std::vector<ServiceSpec> experts;
  for (const std::vector<int64_t>& held : holdings) {
    experts.push_back(mesh.ExpertSpec(held));
  }
  for (int64_t i = 0; i < flags.managed_services; ++i) {
    experts.push_back(mesh.ManagedSpec(flags.managed_memory));
  }
  RETURN_IF_ERROR(supervisor.Start(std::move(experts)));

  ShowProgress("starting the router");
  std::vector<std::string> addresses;
  for (const auto& service : supervisor.services()) {
    addresses.push_back(service->info()->grpc);
  }
  return supervisor.Start({mesh.RouterSpec(addresses)});
}

absl::Status Run(const ServeFlags& flags) {
  LocalMesh mesh = flags.mesh;
  // A file of an earlier run would tell waiting scripts the wrong address.
  if (!flags.ready_file.empty()) {
    RETURN_IF_ERROR(CheckReadyFile(flags.ready_file));
    unlink(flags.ready_file.c_str());
  }
  int64_t num_experts = 0;
  {
    ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(mesh.model));
    num_experts = checkpoint->config().num_experts;
  }
  const int64_t num_services = flags.expert_services.value_or(
      std::min(kDefaultExpertServices, num_experts));
  if (num_services > num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("--expert-services ", num_services, ": the model has ",
                     num_experts, " experts; ask for at most as many"));
  }
  ASSIGN_OR_RETURN(const auto holdings,
                   SpreadExperts(num_experts, num_services, flags.replicas));
  if (!mesh.expert_threads) {
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    mesh.expert_threads =
        std::max<int64_t>(1, cores / (num_services + flags.managed_services));
  }
  RETURN_IF_ERROR(mesh.FindBinaries());

  Supervisor::Options options;
  options.print_line = PrintLine;
  ASSIGN_OR_RETURN(const auto supervisor,
                   Supervisor::Create(std::move(options)));
  const absl::Status started = StartAll(*supervisor, flags, mesh, holdings);
  ShowProgress("");
  if (absl::IsCancelled(started)) return absl::OkStatus();
  RETURN_IF_ERROR(started);

  const auto write_ready_file = [&]() -> absl::Status {
    if (flags.ready_file.empty()) return absl::OkStatus();
    return WriteReadyFile(flags.ready_file, ReadyJson(*supervisor).dump());
  };
  RETURN_IF_ERROR(write_ready_file());
  PrintLine(absl::StrCat("expertmesh: serving ", mesh.model, " at ",
                         supervisor->services().back()->info()->grpc, " (",
                         num_services + flags.managed_services,
                         " expert services, metrics at ",
                         supervisor->services().back()->info()->metrics, ")"));
  supervisor->Watch([&] {
    const absl::Status written = write_ready_file();
    if (!written.ok()) {
      PrintLine(absl::StrCat("expertmesh: ", written.message()));
    }
  });
  if (!flags.ready_file.empty()) unlink(flags.ready_file.c_str());
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
