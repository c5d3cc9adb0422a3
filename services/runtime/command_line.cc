#include "services/runtime/command_line.h"

#include <cstdio>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "services/core/load_progress.h"
#include "services/core/log.h"
#include "services/core/status_macros.h"
#include "services/core/version.h"

namespace expertmesh {

void SetupCommandLine(CLI::App& app, const std::string& name) {
  app.name(name);
  app.set_version_flag("--version", absl::StrCat(name, " ", Version()));
}

std::optional<int> ParseCommandLine(CLI::App& app, int argc,
                                    const char* const* argv) {
  try {
    app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      return app.exit(error, std::cout, std::cerr);  // help or version
    }
    return FailWith(app.get_name(),
                    absl::InvalidArgumentError(absl::StrCat(
                        error.what(), " (--help lists the options)")));
  }
}

void AddTlsOptions(CLI::App& app, absl::string_view what, absl::string_view ca,
                   TlsFiles* files) {
  app.add_option(absl::StrCat(files->flag, "-cert"), files->cert,
                 absl::StrCat("Certificate chain in PEM for ", what,
                              ", read again when it changes; none: no TLS"));
  app.add_option(absl::StrCat(files->flag, "-key"), files->key,
                 absl::StrCat("Private key in PEM of ", files->flag, "-cert"));
  app.add_option(
      absl::StrCat(files->flag, "-ca"), files->ca,
      absl::StrCat("Certificates in PEM of who signs those of ", ca));
}

void AddLogOptions(CLI::App& app, LogOptions* options) {
  app.add_option("--log-level", options->level,
                 "Least severe log lines written: debug, info, warning, error")
      ->capture_default_str();
  app.add_option("--log-format", options->format,
                 "Form of log lines: text, json")
      ->capture_default_str();
  app.add_flag("--progress-lines", options->progress_lines,
               "Say on standard error how far the weights are loaded, for a "
               "launcher to read");
}

absl::Status ApplyLogOptions(absl::string_view service,
                             const LogOptions& options) {
  ASSIGN_OR_RETURN(const LogLevel level, ParseLogLevel(options.level));
  ASSIGN_OR_RETURN(const LogFormat format, ParseLogFormat(options.format));
  ConfigureLog(service, level, format);
  if (options.progress_lines) WriteProgressLines();
  return absl::OkStatus();
}

int FailWith(absl::string_view name, const absl::Status& status) {
  // Once the options have been read, who reads JSON gets nothing else.
  if (CurrentLogFormat() == LogFormat::kJson) {
    Log(LogLevel::kError, status.message(),
        {{"code", absl::StatusCodeToString(status.code())}});
    return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailure;
  }
  const std::string line = absl::StrReplaceAll(status.message(), {{"\n", " "}});
  std::fprintf(stderr, "%s: %s\n", std::string(name).c_str(), line.c_str());
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailure;
}

}  // namespace expertmesh
