// `expertmesh describe`: the model, its experts and endpoints; or a plan of the
// memory they will need.

#include <google/protobuf/util/json_util.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/cli/client.h"
#include "services/cli/command.h"
#include "services/cli/flags.h"
#include "services/cli/load_view.h"
#include "services/cli/plan_view.h"
#include "services/cli/terminal.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

struct DescribeFlags {
  ServerFlags server;
  bool json = false;
  bool plan = false;
  std::string model;
  std::vector<int64_t> services = {1, 2, 4, 8};
};

std::string ModelText(const v1::Model& model) {
  return absl::StrFormat(
      "model        %s (%s, %s)\n"
      "layers       %d, %d of them with experts\n"
      "experts      %d a layer, %d for each token\n"
      "sizes        hidden %d, vocabulary %d, context %d tokens\n"
      "tokenizer    %s\n"
      "sampling     temperature %g, top-k %d, top-p %g\n"
      "router       activations %s, on the wire %s, KV cache of %d tokens\n"
      "capacity     factor %g, overflow policy %s\n"
      "numerics     %s\n"
      "checkpoint   %s\n"
      "version      %s\n",
      model.name(), model.model_type(), model.checkpoint_dtype(),
      model.num_layers(), model.num_moe_layers(), model.num_experts(),
      model.top_k(), model.hidden_size(), model.vocab_size(),
      model.max_context_tokens(),
      model.has_tokenizer() ? "yes" : "none: token ids only",
      model.temperature(), model.top_k_sampling(), model.top_p(),
      model.router_dtype(), model.wire_dtype(), model.kv_cache_tokens(),
      model.capacity_factor(), model.overflow_policy(), model.numerics_id(),
      model.checkpoint_fingerprint(), model.version());
}

std::string EndpointsText(const admin::v1::ListEndpointsResponse& endpoints) {
  std::string text = "endpoints\n";
  for (const admin::v1::Endpoint& endpoint : endpoints.endpoints()) {
    absl::StrAppendFormat(
        &text, "  %-21s %-10s %s, weights %s, %s on %s%s\n", endpoint.address(),
        endpoint.state(), HostedText(endpoint.hosted()),
        endpoint.expert_dtype(), BytesText(endpoint.memory_bytes()),
        endpoint.device(),
        endpoint.reason().empty() ? "" : absl::StrCat(": ", endpoint.reason()));
  }
  if (endpoints.uncovered_slots() > 0) {
    absl::StrAppend(&text, "  ", endpoints.uncovered_slots(),
                    " slots are hosted by no ready endpoint\n");
  }
  return text;
}

absl::StatusOr<std::string> ProtoJson(
    const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  std::string text;
  const auto status =
      google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) return absl::InternalError(status.ToString());
  return text;
}

absl::Status DescribeServer(const DescribeFlags& flags) {
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  v1::Model model;
  grpc::ClientContext context;
  client.Prepare(context);
  RETURN_IF_ERROR(client.Result(client.model().GetModel(&context, {}, &model)));
  ASSIGN_OR_RETURN(const auto endpoints,
                   client.Ask(&admin::v1::AdminService::Stub::ListEndpoints,
                              admin::v1::ListEndpointsRequest()));
  if (!flags.json) {
    WriteOut(absl::StrCat(ModelText(model), EndpointsText(endpoints)));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::string model_json, ProtoJson(model));
  ASSIGN_OR_RETURN(const std::string endpoints_json, ProtoJson(endpoints));
  WriteOut(absl::StrCat("{\"model\":", model_json,
                        ",\"endpoints\":", endpoints_json, "}\n"));
  return absl::OkStatus();
}

absl::Status Run(const DescribeFlags& flags) {
  if (!flags.plan) return DescribeServer(flags);
  if (flags.model.empty()) {
    return absl::InvalidArgumentError("--plan needs --model DIR");
  }
  ASSIGN_OR_RETURN(const std::string plan,
                   flags.json ? PlanJson(flags.model, flags.services)
                              : PlanText(flags.model, flags.services));
  WriteOut(plan);
  return absl::OkStatus();
}

}  // namespace

Command DescribeCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "describe",
      "Show the model, its experts and endpoints; or plan their memory");
  auto flags = std::make_shared<DescribeFlags>();
  AddServerFlags(*app, flags->server);
  AddAdminFlags(*app, flags->server);
  CLI::Option* plan =
      app->add_flag("--plan", flags->plan,
                    "Memory that each service will need; loads nothing");
  app->add_option("--model", flags->model, "Checkpoint folder to plan for")
      ->type_name("DIR")
      ->needs(plan);
  app->add_option("--services", flags->services,
                  "Numbers of expert services to plan for")
      ->type_name("1,2,4,8")
      ->delimiter(',')
      ->check(IsWholeNumber(1))
      ->needs(plan);
  app->add_flag("--json", flags->json, "Print JSON");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace expertmesh
