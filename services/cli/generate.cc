// `expertmesh generate`: streams generated text.

#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/cli/client.h"
#include "services/cli/command.h"
#include "services/cli/expert_bars.h"
#include "services/cli/flags.h"
#include "services/cli/generate_request.h"
#include "services/cli/interrupt.h"
#include "services/cli/response_json.h"
#include "services/cli/terminal.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

struct GenerateCommandFlags {
  ServerFlags server;
  GenerateFlags request;
  bool json = false;
  bool show_experts = false;
  bool stats = false;
};

std::string Account(const v1::RoutingAccount& routing) {
  return absl::StrFormat(
      "%d primary, %d replica, %d waited, %d rerouted, %d dropped; gate mass "
      "kept %.4f%s",
      routing.primary(), routing.replica(), routing.waited(),
      routing.rerouted(), routing.dropped(), routing.gate_mass_kept(),
      routing.crossed() > 0
          ? absl::StrFormat("; %d to another numerics_id", routing.crossed())
          : "");
}

std::string Stats(const v1::GenerateResponse& last) {
  const v1::Timings& timings = last.timings();
  const double decode_seconds =
      timings.total_seconds() - timings.time_to_first_token_seconds();
  const uint32_t decoded = last.usage().generated_tokens() > 0
                               ? last.usage().generated_tokens() - 1
                               : 0;
  std::string text = absl::StrFormat(
      "tokens   %d prompt (%d cached), %d generated (%s)\n"
      "seconds  %.3f queued, %.3f to the first token, %.3f in all",
      last.usage().prompt_tokens(), last.usage().cached_tokens(),
      last.usage().generated_tokens(),
      v1::FinishReason_Name(last.finish_reason()), timings.queue_seconds(),
      timings.time_to_first_token_seconds(), timings.total_seconds());
  if (decoded > 0 && decode_seconds > 0) {
    absl::StrAppendFormat(&text, "; %.1f tokens/s after it",
                          decoded / decode_seconds);
  }
  return absl::StrCat(text, "\nrows     ", Account(last.routing()), "\n");
}

// Prints one stream of responses.
class Printer {
 public:
  Printer(const GenerateCommandFlags& flags, uint32_t num_experts)
      : flags_(flags), bars_(num_experts) {}

  void Print(const v1::GenerateResponse& response) {
    for (const v1::ExpertCount& count : response.expert_counts()) {
      bars_.Add(count.layer(), count.expert_id(), count.rows());
    }
    if (flags_.json) {
      WriteOut(ResponseJson(response) + "\n");
    } else {
      if (flags_.show_experts) line_.Erase();
      WriteOut(response.text());
      if (flags_.show_experts) line_.Draw(bars_.Line(line_.width()));
    }
    any_text_ |= !response.text().empty();
    any_tokens_ |= response.token_ids_size() > 0;
    if (response.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      last_ = response;
    }
  }

  // After the stream has ended, well or not.
  void Finish() {
    if (flags_.show_experts) line_.Erase();
    // Elsewhere than on a terminal only the model's own text is written.
    if (!flags_.json && isatty(STDOUT_FILENO)) WriteOut("\n");
    if (!flags_.json && any_tokens_ && !any_text_ &&
        flags_.request.token_ids.has_value()) {
      WriteErr(
          "expertmesh: no text for these tokens; --json shows their ids\n");
    }
    if (flags_.show_experts) line_.Finish(bars_.Line(line_.width()));
    if (flags_.stats) WriteErr(Stats(last_));
  }

 private:
  const GenerateCommandFlags& flags_;
  ExpertBars bars_;
  LiveLine line_;
  bool any_text_ = false;
  bool any_tokens_ = false;
  v1::GenerateResponse last_;
};

absl::Status Stream(Client& client, const GenerateCommandFlags& flags,
                    uint32_t num_experts, const v1::GenerateRequest& request,
                    Interrupts& interrupts) {
  grpc::ClientContext context;
  client.Prepare(context);
  interrupts.Watch([&context] { context.TryCancel(); });
  const auto reader = client.generation().Generate(&context, request);
  Printer printer(flags, num_experts);
  v1::GenerateResponse response;
  bool answered = false;
  while (reader->Read(&response)) {
    printer.Print(response);
    answered = true;
    if (!OutStatus().ok()) context.TryCancel();
  }
  const grpc::Status status = reader->Finish();
  interrupts.Watch(nullptr);
  if (answered) printer.Finish();
  RETURN_IF_ERROR(OutStatus());
  if (interrupts.interrupted()) return absl::CancelledError("interrupted");
  return client.Result(status);
}

// Prompts line by line from standard input, until it ends.
absl::Status Converse(Client& client, const GenerateCommandFlags& flags,
                      uint32_t num_experts, v1::GenerateRequest request,
                      Interrupts& interrupts) {
  const bool terminal = isatty(STDIN_FILENO);
  std::string line;
  while (true) {
    if (terminal) WriteErr("> ");
    if (!std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    absl::Status status = CheckUtf8(line);
    if (status.ok()) {
      request.set_text(line);
      status = Stream(client, flags, num_experts, request, interrupts);
      if (status.ok() && !flags.json && !isatty(STDOUT_FILENO)) {
        WriteOut("\n");
      }
    }
    if (!status.ok()) {
      if (!terminal) return status;
      WriteErr(absl::StrCat("expertmesh: ", status.message(), "\n"));
    }
  }
  if (terminal) WriteErr("\n");
  return absl::OkStatus();
}

absl::Status Run(const GenerateCommandFlags& flags) {
  Interrupts interrupts;
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  v1::GenerateRequest request = MakeGenerateRequest(flags.request);
  // One entry per token is part of the JSON form.
  if (flags.json && !request.has_logprobs()) request.set_logprobs(0);

  uint32_t num_experts = 0;
  if (flags.show_experts) {
    request.set_expert_counts(true);
    grpc::ClientContext context;
    client.Prepare(context);
    v1::Model model;
    RETURN_IF_ERROR(
        client.Result(client.model().GetModel(&context, {}, &model)));
    num_experts = model.num_experts();
  }
  if (request.prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET) {
    return Converse(client, flags, num_experts, request, interrupts);
  }
  return Stream(client, flags, num_experts, request, interrupts);
}

}  // namespace

Command GenerateCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "generate",
      "Stream generated text; asks for prompts where none is given");
  auto flags = std::make_shared<GenerateCommandFlags>();
  AddServerFlags(*app, flags->server);
  AddGenerateFlags(*app, flags->request);
  app->add_flag("--json", flags->json,
                "Print each response as one line of Protobuf JSON");
  app->add_flag("--show-experts", flags->show_experts,
                "Show on standard error which experts work");
  app->add_flag("--stats", flags->stats,
                "Print usage, timings and routing on standard error");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace expertmesh
