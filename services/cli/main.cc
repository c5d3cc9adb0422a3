// The `expertmesh` binary: a client of the router, and a launcher.

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "services/cli/command.h"
#include "services/cli/terminal.h"
#include "services/core/log.h"
#include "services/core/version.h"
#include "services/runtime/command_line.h"

namespace expertmesh {
namespace {

constexpr const char* kName = "expertmesh";

// The command that was named. (CLI11 would only say that there must be one.)
absl::StatusOr<const Command*> ChosenCommand(
    const CLI::App& root, const std::vector<Command>& commands) {
  const std::vector<std::string> unknown = root.remaining();
  for (const Command& command : commands) {
    if (unknown.empty() && command.app->parsed()) return &command;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      unknown.empty()
          ? "a command is needed"
          : absl::StrCat("there is no command \"", unknown.front(), "\""),
      " (--help lists them)"));
}

int Main(int argc, char** argv) {
  // gRPC's own log lines would break the rule of one line per error.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  // Which certificate was read is no news for the caller.
  ConfigureLog(kName, LogLevel::kWarning, LogFormat::kText);

  CLI::App root(
      "Expertmesh: a Mixture-of-Experts model served by a router and expert "
      "services.");
  SetupCommandLine(root, kName);
  root.require_subcommand(0, 1);
  const std::vector<Command> commands = {
      ServeCommand(root),    GenerateCommand(root),   ScoreCommand(root),
      TokenizeCommand(root), DetokenizeCommand(root), TopCommand(root),
      BenchCommand(root),    DescribeCommand(root),   PlacementCommand(root),
      DrainCommand(root),    ScaleCommand(root)};
  // Only here: commands inherit what the root allows when they are made.
  root.allow_extras();
  for (const Command& command : commands) {
    command.app->set_version_flag("--version",
                                  absl::StrCat(kName, " ", Version()));
  }
  if (const std::optional<int> exit_code = ParseCommandLine(root, argc, argv)) {
    const absl::Status printed = OutStatus();
    return printed.ok() ? *exit_code : FailWith(kName, printed);
  }
  const auto command = ChosenCommand(root, commands);
  if (!command.ok()) return FailWith(kName, command.status());
  absl::Status status = (*command)->run();
  status.Update(OutStatus());
  return status.ok() ? 0 : FailWith(kName, status);
}

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) { return expertmesh::Main(argc, argv); }
