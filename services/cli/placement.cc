// `expertmesh placement` and `expertmesh drain`: where experts are.

#include <google/protobuf/util/json_util.h>

#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/cli/client.h"
#include "services/cli/command.h"
#include "services/cli/placement_view.h"
#include "services/cli/terminal.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

using Admin = admin::v1::AdminService::Stub;

struct PlacementFlags {
  ServerFlags server;
  bool json = false;
  std::string file;
  bool watch = false;
};

absl::Status Print(const google::protobuf::Message& message,
                   const std::string& text, bool json) {
  if (!json) {
    WriteOut(text);
    return absl::OkStatus();
  }
  std::string line;
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  if (!google::protobuf::util::MessageToJsonString(message, &line, options)
           .ok()) {
    return absl::InternalError("cannot write the answer as JSON");
  }
  WriteOut(absl::StrCat(line, "\n"));
  return absl::OkStatus();
}

absl::Status Show(const PlacementFlags& flags) {
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  if (!flags.watch) {
    ASSIGN_OR_RETURN(
        const auto placement,
        client.Ask(&Admin::GetPlacement, admin::v1::GetPlacementRequest()));
    return Print(placement, PlacementText(placement), flags.json);
  }
  grpc::ClientContext context;
  client.PrepareAdmin(context);
  const auto stream = client.admin().WatchPlacement(&context, {});
  admin::v1::Placement placement;
  while (stream->Read(&placement)) {
    RETURN_IF_ERROR(Print(placement, PlacementText(placement), flags.json));
  }
  return client.AdminResult(stream->Finish());
}

absl::Status Propose(const PlacementFlags& flags) {
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  ASSIGN_OR_RETURN(const auto proposal,
                   client.Ask(&Admin::ProposePlacement,
                              admin::v1::ProposePlacementRequest()));
  return Print(proposal, ProposalText(proposal), flags.json);
}

// Version and hosts as `show --json` or `propose --json` wrote them.
absl::StatusOr<admin::v1::Placement> ReadPlacement(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  }
  admin::v1::Placement placement;
  google::protobuf::util::JsonParseOptions options;
  // What a proposal says besides.
  options.ignore_unknown_fields = true;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      text.str(), &placement, options);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", std::string(parsed.message())));
  }
  return placement;
}

absl::Status Apply(const PlacementFlags& flags) {
  ASSIGN_OR_RETURN(const admin::v1::Placement placement,
                   ReadPlacement(flags.file));
  admin::v1::ApplyPlacementRequest request;
  request.set_expected_version(placement.version());
  *request.mutable_placement()->mutable_hosts() = placement.hosts();
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  ASSIGN_OR_RETURN(const auto applied,
                   client.Ask(&Admin::ApplyPlacement, request));
  return Print(applied, AppliedText(applied), flags.json);
}

absl::Status Rebalance(const PlacementFlags& flags) {
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  ASSIGN_OR_RETURN(const auto done, client.Ask(&Admin::Rebalance,
                                               admin::v1::RebalanceRequest()));
  return Print(
      done,
      absl::StrCat(ProposalText(done.proposal()), AppliedText(done.applied())),
      flags.json);
}

// A subcommand of `placement`.
Command Part(CLI::App& parent, const std::string& name, const std::string& help,
             absl::Status (*run)(const PlacementFlags&)) {
  CLI::App* app = parent.add_subcommand(name, help);
  auto flags = std::make_shared<PlacementFlags>();
  AddServerFlags(*app, flags->server);
  AddAdminFlags(*app, flags->server);
  app->add_flag("--json", flags->json, "Print Protobuf JSON");
  if (run == &Show) {
    app->add_flag("--watch", flags->watch, "Print it again at each change");
  }
  if (run == &Apply) {
    app->add_option("FILE", flags->file,
                    "What `show --json` or `propose --json` printed, edited")
        ->required();
  }
  return {app, [flags, run] { return run(*flags); }};
}

}  // namespace

Command PlacementCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "placement", "Show, plan and change which service holds which experts");
  app->require_subcommand(1);
  const std::vector<Command> parts = {
      Part(*app, "show", "Show what each ready service holds", &Show),
      Part(*app, "propose", "Plan a better placement; changes nothing",
           &Propose),
      Part(*app, "apply", "Move experts to where a file says", &Apply),
      Part(*app, "rebalance", "Plan a better placement and apply it",
           &Rebalance)};
  return {app, [parts]() -> absl::Status {
            for (const Command& part : parts) {
              if (part.app->parsed()) return part.run();
            }
            return absl::OkStatus();
          }};
}

Command DrainCommand(CLI::App& root) {
  struct DrainFlags {
    ServerFlags server;
    std::string endpoint;
    bool undo = false;
  };
  CLI::App* app = root.add_subcommand(
      "drain",
      "Tell an expert service to take no new work, once others hold what it "
      "holds");
  auto flags = std::make_shared<DrainFlags>();
  AddServerFlags(*app, flags->server);
  AddAdminFlags(*app, flags->server);
  app->add_option("ENDPOINT", flags->endpoint, "HOST:PORT as `top` shows it")
      ->required();
  app->add_flag("--undo", flags->undo, "Let it take work again");
  return {app, [flags]() -> absl::Status {
            ASSIGN_OR_RETURN(Client client, Client::Create(flags->server));
            admin::v1::DrainEndpointRequest request;
            request.set_address(flags->endpoint);
            request.set_undo(flags->undo);
            return client.Ask(&Admin::DrainEndpoint, request).status();
          }};
}

}  // namespace expertmesh
