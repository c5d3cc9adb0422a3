// `expertmesh tokenize` and `expertmesh detokenize`.

#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/cli/command.h"
#include "services/cli/flags.h"
#include "services/cli/terminal.h"
#include "services/cli/text_coder.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

struct TokenizeFlags {
  ServerFlags server;
  std::string model;
  std::optional<std::string> input;  // --text or --token-ids
  bool jsonl = false;
  bool no_special = false;
  bool skip_special = false;
};

using AnswerLine = std::function<absl::StatusOr<std::string>(
    TextCoder&, const nlohmann::json&)>;

absl::StatusOr<std::unique_ptr<TextCoder>> MakeCoder(
    const TokenizeFlags& flags) {
  if (!flags.model.empty()) return LocalCoder(flags.model);
  return RemoteCoder(flags.server);
}

std::string JsonString(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false,
                                   nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<std::string> EncodeLine(TextCoder& coder,
                                       const nlohmann::json& line,
                                       bool no_special) {
  if (!line.is_string()) {
    return absl::InvalidArgumentError("is not a JSON string");
  }
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids,
                   coder.Encode(line.get<std::string>(), no_special));
  return nlohmann::json(ids).dump();
}

absl::StatusOr<std::string> DecodeLine(TextCoder& coder,
                                       const nlohmann::json& line,
                                       bool skip_special) {
  if (!line.is_array()) {
    return absl::InvalidArgumentError("is not a JSON list of token ids");
  }
  std::vector<uint32_t> ids;
  for (const nlohmann::json& id : line) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) {
      return absl::InvalidArgumentError(
          absl::StrCat("holds ", id.dump(), ", which is no token id"));
    }
    ids.push_back(id.get<uint32_t>());
  }
  ASSIGN_OR_RETURN(const std::string text, coder.Decode(ids, skip_special));
  return JsonString(text);
}

// Answers each line of standard input with one line, at once.
absl::Status AnswerLines(TextCoder& coder, const AnswerLine& answer) {
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const absl::StatusOr<std::string> answered =
        json.is_discarded() ? absl::InvalidArgumentError("is not JSON")
                            : answer(coder, json);
    if (!answered.ok()) {
      // Not the command line but its input is wrong.
      return absl::FailedPreconditionError(
          absl::StrCat("line ", number, ": ", answered.status().message()));
    }
    WriteOut(*answered + "\n");
    RETURN_IF_ERROR(OutStatus());
  }
  return absl::OkStatus();
}

absl::Status RunTokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<TextCoder> coder, MakeCoder(flags));
  if (flags.jsonl) {
    return AnswerLines(*coder, [&](TextCoder& coder, const auto& line) {
      return EncodeLine(coder, line, flags.no_special);
    });
  }
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids,
                   coder->Encode(*flags.input, flags.no_special));
  WriteOut(nlohmann::json(ids).dump() + "\n");
  return absl::OkStatus();
}

absl::Status RunDetokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<TextCoder> coder, MakeCoder(flags));
  if (flags.jsonl) {
    return AnswerLines(*coder, [&](TextCoder& coder, const auto& line) {
      return DecodeLine(coder, line, flags.skip_special);
    });
  }
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids,
                   ParseTokenIds(*flags.input));
  ASSIGN_OR_RETURN(const std::string text,
                   coder->Decode(ids, flags.skip_special));
  WriteOut(text + "\n");
  return absl::OkStatus();
}

void AddSourceFlags(CLI::App& app, TokenizeFlags& flags) {
  CLI::Option* server = AddServerFlags(app, flags.server);
  app.add_option("--model", flags.model,
                 "Checkpoint folder or tokenizer.json to use without a server")
      ->type_name("DIR")
      ->excludes(server);
}

}  // namespace

Command TokenizeCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand("tokenize", "Text to token ids");
  auto flags = std::make_shared<TokenizeFlags>();
  AddSourceFlags(*app, *flags);
  CLI::Option_group* input = app->add_option_group("Input", "One of these");
  input->add_option("--text", flags->input, "Text to tokenize")
      ->type_name("TEXT")
      ->check(IsUtf8());
  input->add_flag("--jsonl", flags->jsonl,
                  "A JSON string a line on standard input, answered by a list "
                  "of ids each");
  input->require_option(1);
  app->add_flag("--no-special", flags->no_special,
                "Without the special tokens the model's template adds");
  return {app, [flags] { return RunTokenize(*flags); }};
}

Command DetokenizeCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand("detokenize", "Token ids to text");
  auto flags = std::make_shared<TokenizeFlags>();
  AddSourceFlags(*app, *flags);
  CLI::Option_group* input = app->add_option_group("Input", "One of these");
  input->add_option("--token-ids", flags->input, "Token ids to turn into text")
      ->type_name("1,2,3")
      ->check(IsTokenIds());
  input->add_flag("--jsonl", flags->jsonl,
                  "A list of ids a line on standard input, answered by a JSON "
                  "string each");
  input->require_option(1);
  app->add_flag("--skip-special", flags->skip_special,
                "Leave special tokens out of the text");
  return {app, [flags] { return RunDetokenize(*flags); }};
}

}  // namespace expertmesh
