// `expertmesh score`: log-probabilities of a given text.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/cli/client.h"
#include "services/cli/command.h"
#include "services/cli/flags.h"
#include "services/cli/generate_request.h"
#include "services/cli/score_windows.h"
#include "services/cli/terminal.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

struct ScoreFlags {
  ServerFlags server;
  std::optional<std::string> text;
  std::optional<std::string> text_file;
  std::optional<std::string> token_ids;
  WindowOptions windows;
  std::string overflow_policy;
  bool exact = false;
  int32_t priority = 0;
  bool json = false;
};

absl::StatusOr<std::vector<uint32_t>> InputIds(Client& client,
                                               const ScoreFlags& flags) {
  if (flags.token_ids) return ParseTokenIds(*flags.token_ids);
  v1::TokenizeRequest request;
  if (flags.text) {
    request.set_text(*flags.text);
  } else {
    ASSIGN_OR_RETURN(std::string text, ReadFile(*flags.text_file));
    if (const absl::Status utf8 = CheckUtf8(text); !utf8.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat(*flags.text_file, ": ", utf8.message()));
    }
    request.set_text(std::move(text));
  }
  grpc::ClientContext context;
  client.Prepare(context);
  v1::TokenizeResponse response;
  RETURN_IF_ERROR(client.Result(
      client.generation().Tokenize(&context, request, &response)));
  return std::vector<uint32_t>(response.token_ids().begin(),
                               response.token_ids().end());
}

absl::Status ScoreWindow(Client& client, const ScoreFlags& flags,
                         absl::Span<const uint32_t> window, Scores& scores) {
  // One token has nothing before it to be scored by.
  if (window.size() < 2) {
    scores.AddWindow({});
    return absl::OkStatus();
  }
  v1::ScoreRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(window.begin(),
                                                     window.end());
  request.set_overflow_policy(OverflowPolicyOf(flags.overflow_policy));
  request.set_exact(flags.exact);
  request.set_priority(flags.priority);
  grpc::ClientContext context;
  client.Prepare(context);
  v1::ScoreResponse response;
  RETURN_IF_ERROR(
      client.Result(client.generation().Score(&context, request, &response)));
  if (response.logprobs_size() + 1 != static_cast<int>(window.size())) {
    return absl::InternalError(
        absl::StrCat("the router scored ", response.logprobs_size(),
                     " tokens of a window of ", window.size(),
                     "; is it of another version?"));
  }
  scores.AddWindow(response.logprobs());
  return absl::OkStatus();
}

void PrintText(absl::Span<const uint32_t> ids, const Scores& scores) {
  for (size_t i = 0; i < scores.logprobs.size(); ++i) {
    const std::optional<float>& logprob = scores.logprobs[i];
    WriteOut(absl::StrCat(i + 2, "\t", ids[i + 1], "\t",
                          logprob ? absl::StrFormat("%.6f", *logprob) : "-",
                          "\n"));
  }
  if (const std::optional<double> mean = scores.Mean()) {
    WriteOut(absl::StrFormat("mean\t%.6f\nperplexity\t%.6f\n", *mean,
                             *scores.Perplexity()));
  }
}

absl::Status Run(const ScoreFlags& flags) {
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, InputIds(client, flags));
  Scores scores;
  for (const auto& window : SplitIntoWindows(ids, flags.windows)) {
    RETURN_IF_ERROR(ScoreWindow(client, flags, window, scores));
  }
  if (flags.json) {
    WriteOut(scores.Json() + "\n");
  } else {
    PrintText(ids, scores);
  }
  return absl::OkStatus();
}

void AddFlags(CLI::App& app, ScoreFlags& flags) {
  AddServerFlags(app, flags.server);
  CLI::Option_group* input = app.add_option_group("Input", "One of these");
  input->add_option("--text", flags.text, "Text to score")
      ->type_name("TEXT")
      ->check(IsUtf8());
  input->add_option("--text-file", flags.text_file, "File to score")
      ->type_name("FILE");
  input->add_option("--token-ids", flags.token_ids, "Token ids to score")
      ->type_name("1,2,3")
      ->check(IsTokenIds());
  input->require_option(1);
  app.add_option("--window", flags.windows.window,
                 "Tokens scored together; windows do not overlap")
      ->type_name("N")
      ->check(IsWholeNumber(2, uint64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--max-windows", flags.windows.max_windows,
                 "Score so many windows at most")
      ->type_name("N")
      ->check(IsWholeNumber(0));
  app.add_flag("--complete-windows", flags.windows.complete_windows,
               "Leave out an incomplete last window");
  AddOverflowFlags(app, flags.overflow_policy, flags.exact);
  AddPriorityFlag(app, flags.priority);
  app.add_flag("--json", flags.json, "Print one JSON object");
}

}  // namespace

Command ScoreCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "score",
      "Log-probability of each token of a text, their mean, the perplexity");
  auto flags = std::make_shared<ScoreFlags>();
  AddFlags(*app, *flags);
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace expertmesh
