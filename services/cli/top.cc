// `expertmesh top`: live expert load.

#include <unistd.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "services/cli/client.h"
#include "services/cli/command.h"
#include "services/cli/flags.h"
#include "services/cli/load_view.h"
#include "services/cli/terminal.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

struct TopFlags {
  ServerFlags server;
  double interval_seconds = 1;
  bool once = false;
};

absl::StatusOr<std::string> Frame(Client& client) {
  using Admin = admin::v1::AdminService::Stub;
  ASSIGN_OR_RETURN(
      const auto load,
      client.Ask(&Admin::GetExpertLoad, admin::v1::GetExpertLoadRequest()));
  ASSIGN_OR_RETURN(
      const auto endpoints,
      client.Ask(&Admin::ListEndpoints, admin::v1::ListEndpointsRequest()));
  return LoadView(load, endpoints, SizeOfTerminal(STDOUT_FILENO).columns);
}

absl::Status Run(const TopFlags& flags) {
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  // Elsewhere than on a terminal frames follow one another.
  const bool redraw = isatty(STDOUT_FILENO) && !flags.once;
  if (redraw) WriteOut("\033[2J");
  while (true) {
    ASSIGN_OR_RETURN(const std::string frame, Frame(client));
    if (redraw) {
      // Over the last frame, line by line: clearing first would flicker.
      WriteOut(absl::StrCat("\033[H",
                            absl::StrReplaceAll(frame, {{"\n", "\033[K\n"}}),
                            "\033[J"));
    } else {
      WriteOut(frame);
    }
    RETURN_IF_ERROR(OutStatus());
    if (flags.once) return absl::OkStatus();
    absl::SleepFor(absl::Seconds(flags.interval_seconds));
  }
}

}  // namespace

Command TopCommand(CLI::App& root) {
  CLI::App* app =
      root.add_subcommand("top", "Show live expert load; Ctrl-C ends it");
  auto flags = std::make_shared<TopFlags>();
  AddServerFlags(*app, flags->server);
  AddAdminFlags(*app, flags->server);
  app->add_option("--interval", flags->interval_seconds,
                  "Seconds between frames")
      ->type_name("SECONDS")
      ->check(IsPositive())
      ->capture_default_str();
  app->add_flag("--once", flags->once, "Print one frame and exit");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace expertmesh
