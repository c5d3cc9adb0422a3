#pragma once

// The subcommands of `expertmesh`.

#include <CLI/CLI.hpp>
#include <functional>

#include "absl/status/status.h"

namespace expertmesh {

// `app` holds the flags; `run` is called after they are parsed. Its error is
// printed as one line; INVALID_ARGUMENT exits with 2, any other with 1.
struct Command {
  CLI::App* app;
  std::function<absl::Status()> run;
};

// Each adds one subcommand to `root`.
Command ServeCommand(CLI::App& root);
Command GenerateCommand(CLI::App& root);
Command ScoreCommand(CLI::App& root);
Command TokenizeCommand(CLI::App& root);
Command DetokenizeCommand(CLI::App& root);
Command TopCommand(CLI::App& root);
Command BenchCommand(CLI::App& root);
Command DescribeCommand(CLI::App& root);
Command PlacementCommand(CLI::App& root);
Command DrainCommand(CLI::App& root);
Command ScaleCommand(CLI::App& root);

}  // namespace expertmesh
