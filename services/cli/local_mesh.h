#pragma once

// The command lines of the services that `expertmesh serve` starts.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "services/cli/supervisor.h"

namespace expertmesh {

struct LocalMesh {
  std::string model;
  std::string listen = "127.0.0.1:50051";
  std::string admin_listen;  // "": the router's default
  std::string metrics_listen = "127.0.0.1:0";
  std::optional<int64_t> expert_threads;

  // Values of flags that the services understand themselves, by flag name.
  // A launcher is watched by one person: quiet, and quick to stop.
  using FlagValues = std::map<std::string, std::string>;
  FlagValues router_flags = {{"--log-level", "warning"},
                             {"--drain-timeout", "5"}};
  FlagValues expert_flags = {{"--log-level", "warning"}};

  // The command line of an expert service of kStaticPoolName that holds
  // `experts`.
  ServiceSpec ExpertSpecOf(const std::string& name, const std::string& experts,
                           const FlagValues& flags) const;

  // Paths of the binaries, beside this one.
  std::string router_binary;
  std::string expert_binary;

  // Errors: FAILED_PRECONDITION naming the binary that is not there.
  absl::Status FindBinaries();

  // An expert service that holds `experts`, ascending, of every layer.
  ServiceSpec ExpertSpec(absl::Span<const int64_t> experts) const;
  // One that starts empty and is told what to hold, within `memory`, as in
  // "512MiB".
  ServiceSpec ManagedSpec(const std::string& memory) const;
  // `experts`: the flags that say where the experts are.
  ServiceSpec RouterSpec(const std::vector<std::string>& experts) const;
};

// --expert-threads, and the flags that are passed on unread.
void AddPassedOnFlags(CLI::App& app, LocalMesh& mesh);

}  // namespace expertmesh
