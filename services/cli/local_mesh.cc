#include "services/cli/local_mesh.h"

#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "services/checkpoint/expert_range.h"
#include "services/cli/flags.h"
#include "services/mesh/mesh_config.h"

namespace expertmesh {
namespace {

using FlagValues = LocalMesh::FlagValues;

CLI::Option* AddPassedOn(CLI::App& app, const std::string& name,
                         const std::vector<FlagValues*>& receivers,
                         const std::string& help) {
  return app.add_option_function<std::string>(
      name,
      [name, receivers](const std::string& value) {
        for (FlagValues* flags : receivers) (*flags)[name] = value;
      },
      help);
}

void AddChoice(CLI::App& app, const std::string& name,
               const std::vector<std::string>& choices,
               const std::vector<FlagValues*>& receivers,
               const std::string& help) {
  AddPassedOn(app, name, receivers, help)
      ->type_name(absl::StrJoin(choices, "|"))
      ->check(CLI::IsMember(choices).description(""));
}

void AddNumber(CLI::App& app, const std::string& name,
               const std::vector<FlagValues*>& receivers,
               const std::string& help) {
  AddPassedOn(app, name, receivers, help)
      ->type_name("X")
      ->check(IsNonNegative());
}

void AddCount(CLI::App& app, const std::string& name,
              const std::vector<FlagValues*>& receivers,
              const std::string& help) {
  AddPassedOn(app, name, receivers, help)
      ->type_name("N")
      ->check(IsWholeNumber(0));
}

void Append(std::vector<std::string>& argv,
            std::initializer_list<std::string> more) {
  argv.insert(argv.end(), more);
}

void Append(std::vector<std::string>& argv, const FlagValues& flags) {
  for (const auto& [flag, value] : flags) {
    argv.push_back(absl::StrCat(flag, "=", value));
  }
}

// "127.0.0.1:41002" of "http://127.0.0.1:41002/metrics".
std::string AddressOf(absl::string_view url) {
  url = absl::StripPrefix(url, "http://");
  return std::string(url.substr(0, url.find('/')));
}

}  // namespace

void AddPassedOnFlags(CLI::App& app, LocalMesh& mesh) {
  const std::vector<FlagValues*> router = {&mesh.router_flags};
  const std::vector<FlagValues*> experts = {&mesh.expert_flags};
  const std::vector<FlagValues*> both = {&mesh.router_flags,
                                         &mesh.expert_flags};
  const std::vector<std::string> formats = {"auto", "f32", "bf16", "int8",
                                            "int4"};

  AddChoice(app, "--router-dtype", formats, router,
            "The router's own arithmetic: activations as f32 or bf16, or "
            "weights as int8 or int4; default auto: the checkpoint's type");
  AddChoice(app, "--kv-dtype", {"auto", "f32", "bf16", "int8"}, router,
            "Type of keys and values; default auto: that of activations");
  AddChoice(app, "--wire-dtype", {"auto", "f32", "bf16", "int8"}, router,
            "Type of activations between services; default auto: the "
            "checkpoint's");
  AddPassedOn(app, "--combine-group-size", router,
              "Experts whose outputs a service may add up before it answers; "
              "default: 1")
      ->type_name("N|all")
      ->check(CLI::IsMember({"all"}).description("") |
              IsWholeNumber(1).description(""));
  AddChoice(app, "--expert-dtype", formats, experts,
            "Type of expert weights in memory; default auto: the "
            "checkpoint's");
  AddPassedOn(app, "--device", experts,
              "What the expert services compute on; default auto: CUDA device "
              "0 where there is one, else the CPU")
      ->type_name("auto|cpu|cuda|cuda:N");
  AddChoice(app, "--numerics", {"invariant", "fast"}, experts,
            "fast: on a CUDA device bits may depend on other rows, which is "
            "faster for many rows of bf16 experts; default: invariant");

  AddPassedOn(app, "--pack-cache", both,
              "Folder where the services keep packed weights, so that the next "
              "start reads them instead of packing")
      ->type_name("DIR");

  AddChoice(app, "--metrics-expert-detail", {"off", "topk", "full"}, both,
            "Series of /metrics by layer or expert; default: topk");
  AddPassedOn(app, "--trace-file", both,
              "File that spans of sampled requests are appended to, as "
              "OTLP/JSON lines")
      ->type_name("FILE");
  AddNumber(app, "--trace-sample", router,
            "Share of requests traced although their client did not ask for "
            "it, with --trace-file; default: 0");

  AddNumber(app, "--capacity-factor", router,
            "Rows an expert accepts per step, over the mean; 0: no limit");
  AddCount(app, "--min-capacity", router,
           "Rows an expert accepts per step at least");
  AddNumber(
      app, "--max-lost-gate-mass", router,
      "Share of gate mass that next_best and drop may cost; default: 0.02");
  AddChoice(app, "--overflow-policy", {"wait", "next_best", "drop"}, router,
            "What becomes of rows above an expert's capacity");

  AddChoice(app, "--rebalance", {"off", "auto"}, router,
            "Whether managed services follow the traffic by themselves; "
            "default: off");
  AddNumber(app, "--rebalance-interval", router,
            "Seconds between two looks whether to move experts; default: 10");

  app.add_flag_callback(
      "--mix-numerics", [router] { (*router[0])["--mix-numerics"] = "true"; },
      "Send rows to expert services of any numerics_id, such as CPUs and GPUs, "
      "by their speed; results then depend in the last bits on who served");

  AddCount(app, "--threads", router, "Threads of the router");
  app.add_option("--expert-threads", mesh.expert_threads,
                 "Threads of each expert service; default: the machine's cores "
                 "divided among them")
      ->type_name("N")
      ->check(IsWholeNumber(1));
  AddCount(app, "--max-step-tokens", router, "Tokens computed in one step");
  AddCount(app, "--max-sequences", router, "Requests running at once");
  AddCount(app, "--max-queue", router,
           "Requests that may wait; more are refused");
  AddNumber(app, "--target-inter-token-latency", router,
            "Seconds that a step should take where requests decode; default: "
            "0, no target");
  AddNumber(app, "--priority-step", router,
            "Seconds of waiting that are worth one priority; default: 10");
  AddChoice(app, "--prefix-cache", {"on", "off"}, router,
            "Whether prompts that begin the same share keys and values; "
            "default: on");
  AddCount(app, "--kv-cache-tokens", router, "Tokens the KV cache holds");
  AddCount(app, "--kv-cache-bytes", router, "Memory of the KV cache, at most");
  AddNumber(app, "--resolve-interval", router,
            "Seconds between two looks for services that came or went, with "
            "--mesh-config; default: 2");
  AddNumber(app, "--uncovered-timeout", router,
            "Seconds to wait for an expert that no service serves before the "
            "requests that need it fail; default: 10");
  AddNumber(app, "--drain-timeout", router,
            "Seconds running requests get to finish when stopped; default: 5");

  app.add_flag_callback(
      "--no-shared-memory",
      [both] {
        for (FlagValues* flags : both) (*flags)["--no-shared-memory"] = "true";
      },
      "Have the services exchange batches over gRPC alone");
  AddChoice(app, "--log-level", {"debug", "info", "warning", "error"}, both,
            "Least level of the services' log lines; default: warning");
  AddChoice(app, "--log-format", {"text", "json"}, both,
            "Form of the services' log lines");
}

absl::Status LocalMesh::FindBinaries() {
  std::error_code error;
  const std::filesystem::path self =
      std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path folder = self.parent_path();
  router_binary = folder / "expertmesh-router";
  expert_binary = folder / "expertmesh-expert";
  for (const std::string& binary : {router_binary, expert_binary}) {
    if (access(binary.c_str(), X_OK) != 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          binary, " is not there; build or install it beside ", self.string()));
    }
  }
  return absl::OkStatus();
}

ServiceSpec LocalMesh::ExpertSpec(absl::Span<const int64_t> ids) const {
  const std::string experts = FormatExpertList(ids);
  return ExpertSpecOf(absl::StrCat("expert service ", experts), experts, {});
}

ServiceSpec LocalMesh::ManagedSpec(const std::string& memory) const {
  return ExpertSpecOf("managed expert service", "none",
                      {{"--memory-budget", memory}});
}

ServiceSpec LocalMesh::ExpertSpecOf(const std::string& name,
                                    const std::string& experts,
                                    const FlagValues& flags) const {
  const auto command = [mesh = *this, experts, flags](
                           const std::string& ready_file,
                           const ReadyInfo* previous) {
    std::vector<std::string> argv = {mesh.expert_binary,
                                     "--model",
                                     mesh.model,
                                     "--experts",
                                     experts,
                                     "--ready-file",
                                     ready_file,
                                     "--exit-with-parent",
                                     "--progress-lines"};
    Append(argv, {"--listen", previous ? previous->grpc : "127.0.0.1:0"});
    Append(argv, {"--metrics-listen", previous && !previous->metrics.empty()
                                          ? AddressOf(previous->metrics)
                                          : "127.0.0.1:0"});
    if (mesh.expert_threads) {
      Append(argv, {"--threads", absl::StrCat(*mesh.expert_threads)});
    }
    Append(argv, mesh.expert_flags);
    Append(argv, flags);
    return argv;
  };
  return {name, kStaticPoolName, command};
}

ServiceSpec LocalMesh::RouterSpec(
    const std::vector<std::string>& experts) const {
  const auto command = [mesh = *this, experts](const std::string& ready_file,
                                               const ReadyInfo* previous) {
    std::vector<std::string> argv = {mesh.router_binary, "--model",
                                     mesh.model,         "--ready-file",
                                     ready_file,         "--exit-with-parent",
                                     "--progress-lines"};
    Append(argv, {"--listen", previous ? previous->grpc : mesh.listen});
    Append(argv, {"--metrics-listen", previous && !previous->metrics.empty()
                                          ? AddressOf(previous->metrics)
                                          : mesh.metrics_listen});
    const std::string admin = previous && !previous->admin.empty()
                                  ? previous->admin
                                  : mesh.admin_listen;
    if (!admin.empty()) Append(argv, {"--admin-listen", admin});
    argv.insert(argv.end(), experts.begin(), experts.end());
    Append(argv, mesh.router_flags);
    return argv;
  };
  return {"the router", /*pool=*/"", command};
}

}  // namespace expertmesh
