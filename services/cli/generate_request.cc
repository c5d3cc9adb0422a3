#include "services/cli/generate_request.h"

#include <limits>

#include "services/cli/flags.h"

namespace expertmesh {
namespace {

template <typename Field>
void AddIds(const std::string& list, Field* field) {
  const auto ids = ParseTokenIds(list).value_or(std::vector<uint32_t>());
  field->Add(ids.begin(), ids.end());
}

void AddPromptFlags(CLI::App& app, GenerateFlags& flags) {
  CLI::Option* prompt =
      app.add_option("--prompt", flags.prompt,
                     "Text to continue; special tokens in it are recognised")
          ->type_name("TEXT")
          ->check(IsUtf8());
  app.add_option("--token-ids", flags.token_ids, "Token ids to continue")
      ->type_name("1,2,3")
      ->check(IsTokenIds())
      ->excludes(prompt);
  app.add_option("--request-id", flags.request_id,
                 "Names the request in logs; default: a random one")
      ->type_name("ID")
      ->check(IsUtf8());
}

void AddSamplingFlags(CLI::App& app, GenerateFlags& flags) {
  app.add_option("--temperature", flags.temperature, "0: greedy")
      ->type_name("T");
  app.add_option("--top-k", flags.top_k,
                 "Sample among the K likeliest tokens; 0: all")
      ->type_name("K");
  app.add_option("--top-p", flags.top_p,
                 "Sample among the likeliest tokens of this mass")
      ->type_name("P");
  app.add_option(
         "--min-p", flags.min_p,
         "Leave out tokens less likely than this share of the likeliest")
      ->type_name("P");
  app.add_option("--repetition-penalty", flags.repetition_penalty,
                 "Divides the logits of tokens already seen; 1: none")
      ->type_name("X");
  app.add_option("--presence-penalty", flags.presence_penalty,
                 "Subtracted once from the logits of tokens of the output")
      ->type_name("X");
  app.add_option("--frequency-penalty", flags.frequency_penalty,
                 "Subtracted for each occurrence in the output")
      ->type_name("X");
  app.add_option("--seed", flags.seed, "Same seed and request, same tokens")
      ->type_name("S")
      ->check(IsWholeNumber(0, std::numeric_limits<uint64_t>::max()));
}

void AddStopFlags(CLI::App& app, GenerateFlags& flags) {
  app.add_option("--max-tokens", flags.max_tokens,
                 "Most new tokens; default: what the context has room for")
      ->type_name("N");
  app.add_option("--min-tokens", flags.min_tokens,
                 "No end of sequence before so many new tokens")
      ->type_name("N");
  app.add_option("--stop", flags.stop,
                 "End before this string; may be given several times")
      ->type_name("TEXT")
      ->check(IsUtf8())
      ->allow_extra_args(false);
  app.add_option("--stop-ids", flags.stop_ids, "End after one of these ids")
      ->type_name("1,2,3")
      ->check(IsTokenIds());
  app.add_flag("--ignore-eos", flags.ignore_eos,
               "Go on after end-of-sequence tokens");
}

}  // namespace

void AddGenerateFlags(CLI::App& app, GenerateFlags& flags) {
  AddPromptFlags(app, flags);
  AddStopFlags(app, flags);
  AddSamplingFlags(app, flags);
  app.add_option(
         "--logprobs", flags.logprobs,
         "Report log-probabilities: of new tokens and of N alternatives "
         "(shown with --json)")
      ->type_name("N");
  app.add_option("--prompt-logprobs", flags.prompt_logprobs,
                 "The same for the prompt's tokens")
      ->type_name("N");
  AddOverflowFlags(app, flags.overflow_policy, flags.exact);
  AddPriorityFlag(app, flags.priority);
}

void AddPriorityFlag(CLI::App& app, int32_t& priority) {
  app.add_option("--priority", priority,
                 "From -10 to 10; higher goes first where requests wait")
      ->type_name("N");
}

void AddOverflowFlags(CLI::App& app, std::string& policy, bool& exact) {
  app.add_option("--overflow-policy", policy,
                 "What becomes of rows above an expert's capacity; default: "
                 "the deployment's policy")
      ->type_name("wait|next_best|drop")
      ->check(CLI::IsMember({"wait", "next_best", "drop"}).description(""));
  app.add_flag("--exact", exact,
               "The routing of this request is never changed");
}

v1::OverflowPolicy OverflowPolicyOf(const std::string& name) {
  if (name == "wait") return v1::OVERFLOW_POLICY_WAIT;
  if (name == "next_best") return v1::OVERFLOW_POLICY_NEXT_BEST;
  if (name == "drop") return v1::OVERFLOW_POLICY_DROP;
  return v1::OVERFLOW_POLICY_UNSPECIFIED;
}

v1::GenerateRequest MakeGenerateRequest(const GenerateFlags& flags) {
  v1::GenerateRequest request;
  if (flags.prompt) request.set_text(*flags.prompt);
  if (flags.token_ids) {
    AddIds(*flags.token_ids, request.mutable_token_ids()->mutable_ids());
  }
  request.set_request_id(flags.request_id);
  if (flags.max_tokens) request.set_max_tokens(*flags.max_tokens);
  if (flags.min_tokens) request.set_min_tokens(*flags.min_tokens);
  if (flags.temperature) request.set_temperature(*flags.temperature);
  if (flags.top_k) request.set_top_k(*flags.top_k);
  if (flags.top_p) request.set_top_p(*flags.top_p);
  if (flags.min_p) request.set_min_p(*flags.min_p);
  if (flags.repetition_penalty) {
    request.set_repetition_penalty(*flags.repetition_penalty);
  }
  if (flags.presence_penalty) {
    request.set_presence_penalty(*flags.presence_penalty);
  }
  if (flags.frequency_penalty) {
    request.set_frequency_penalty(*flags.frequency_penalty);
  }
  if (flags.seed) request.set_seed(*flags.seed);
  for (const std::string& stop : flags.stop) request.add_stop(stop);
  if (flags.stop_ids) {
    AddIds(*flags.stop_ids, request.mutable_stop_token_ids());
  }
  if (flags.ignore_eos) request.set_ignore_eos(true);
  if (flags.logprobs) request.set_logprobs(*flags.logprobs);
  if (flags.prompt_logprobs)
    request.set_prompt_logprobs(*flags.prompt_logprobs);
  request.set_overflow_policy(OverflowPolicyOf(flags.overflow_policy));
  request.set_exact(flags.exact);
  request.set_priority(flags.priority);
  return request;
}

}  // namespace expertmesh
