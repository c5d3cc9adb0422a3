#pragma once

// What the command lines of all binaries have in common.

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "services/runtime/tls_files.h"

namespace expertmesh {

// Exit codes, for scripts.
inline constexpr int kExitFailure = 1;  // could not start, or failed
inline constexpr int kExitUsage = 2;    // wrong command line

// Gives `app` its name and `--version` ("expertmesh-expert 0.1.0").
void SetupCommandLine(CLI::App& app, const std::string& name);

// Parses. Returns nothing when the program should go on; otherwise the exit
// code, after the help or version on standard output (0), or one line about
// what is wrong on standard error (kExitUsage).
std::optional<int> ParseCommandLine(CLI::App& app, int argc,
                                    const char* const* argv);

// --log-level, --log-format and --progress-lines.
struct LogOptions {
  std::string level = "info";
  std::string format = "text";
  bool progress_lines = false;
};
void AddLogOptions(CLI::App& app, LogOptions* options);

// The flags of `files`: FLAG-cert, FLAG-key and FLAG-ca. `what` is what they
// are for, as in "connections of clients"; `ca` whom the last is for.
void AddTlsOptions(CLI::App& app, absl::string_view what, absl::string_view ca,
                   TlsFiles* files);

// Applies log options to the process; `service` is stamped on every line.
// Errors: INVALID_ARGUMENT naming the value.
absl::Status ApplyLogOptions(absl::string_view service,
                             const LogOptions& options);

// Prints "NAME: message" on standard error, as one line, or with
// --log-format=json a line of the log, and returns the exit
// code: kExitUsage for INVALID_ARGUMENT, kExitFailure for the rest.
int FailWith(absl::string_view name, const absl::Status& status);

}  // namespace expertmesh
