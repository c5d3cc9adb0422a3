// The `expertmesh` binary: a client of the router, and a launcher.

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/cli/command.h"
#include "services/core/version.h"
#include "services/runtime/command_line.h"

int main(int argc, char** argv) {
  using namespace expertmesh;
  // gRPC's own log lines would break the rule of one line per error.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);

  CLI::App root(
      "Expertmesh: a Mixture-of-Experts model served by a router and expert "
      "services.");
  SetupCommandLine(root, "expertmesh");
  root.require_subcommand(1);
  const std::vector<Command> commands = {
      ServeCommand(root),    GenerateCommand(root),   ScoreCommand(root),
      TokenizeCommand(root), DetokenizeCommand(root), TopCommand(root),
      DescribeCommand(root), PlacementCommand(root),  DrainCommand(root)};
  for (const Command& command : commands) {
    command.app->set_version_flag("--version",
                                  absl::StrCat("expertmesh ", Version()));
  }
  if (const std::optional<int> exit_code = ParseCommandLine(root, argc, argv)) {
    return *exit_code;
  }
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const absl::Status status = command.run();
    if (!status.ok()) return FailWith("expertmesh", status);
  }
  return 0;
}
