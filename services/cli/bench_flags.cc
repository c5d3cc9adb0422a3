#include "services/cli/bench_flags.h"

#include <cmath>

#include "services/cli/flags.h"
#include "services/cli/generate_request.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

constexpr double kDefaultSeconds = 30;

CLI::Validator IsLengths() {
  return CLI::Validator(
      [](std::string& text) {
        return std::string(LengthDistribution::Parse(text).status().message());
      },
      "");
}

// A number above 0, or "inf".
CLI::Validator IsRate() {
  return CLI::Validator(
      [](std::string& text) {
        return text == "inf" ? std::string() : IsPositive()(text);
      },
      "");
}

void AddLoadFlags(CLI::App& app, BenchFlags& flags) {
  CLI::Option* concurrency =
      app.add_option("--concurrency", flags.concurrency,
                     "Requests at a time, each followed by the next; levels "
                     "of a list run one after the other; default: 1")
          ->type_name("N,N")
          ->delimiter(',')
          ->check(IsWholeNumber(1, 65536));
  app.add_option("--request-rate", flags.request_rates,
                 "Requests a second at random times, however long answers "
                 "take; inf: all at once. Latency counts from the planned time")
      ->type_name("R,R")
      ->delimiter(',')
      ->check(IsRate())
      ->excludes(concurrency);
  app.add_option("--requests", flags.requests, "Requests of a level")
      ->type_name("N")
      ->check(IsWholeNumber(1));
  app.add_option("--duration", flags.duration_seconds,
                 "Seconds in which a level's requests begin; default: 30, or "
                 "no limit with --requests")
      ->type_name("SECONDS")
      ->check(IsPositive());
  app.add_option("--warmup", flags.warmup,
                 "Requests before each level that do not count")
      ->type_name("N")
      ->check(IsWholeNumber(0))
      ->capture_default_str();
}

void AddRequestFlags(CLI::App& app, BenchFlags& flags) {
  CLI::Option* prompts =
      app.add_option("--prompts", flags.prompts_file,
                     "Ask the lines of this file in turn; default: random "
                     "tokens")
          ->type_name("FILE");
  app.add_option("--prompt-tokens", flags.prompt_tokens,
                 "Tokens of a prompt: 128, uniform:64-256, normal:MEAN,STDDEV, "
                 "lognormal:MEDIAN,SIGMA or zipf:EXPONENT,MAX")
      ->type_name("LENGTHS")
      ->check(IsLengths())
      ->excludes(prompts)
      ->capture_default_str();
  app.add_option("--shared-prefix-tokens", flags.shared_prefix_tokens,
                 "Begin every prompt with the same tokens, so many more")
      ->type_name("N")
      ->check(IsWholeNumber(0, 1 << 20))
      ->excludes(prompts);
  app.add_option(
         "--output-tokens", flags.output_tokens,
         "Tokens of an answer, likewise; ends of sequence do not end it")
      ->type_name("LENGTHS")
      ->check(IsLengths())
      ->capture_default_str();
  app.add_option("--temperature", flags.temperature,
                 "0: greedy; default: the server's")
      ->type_name("T")
      ->check(IsNonNegative());
  AddOverflowFlags(app, flags.overflow_policy, flags.exact);
  app.add_option("--seed", flags.seed,
                 "Same seed and flags: same requests and arrival times")
      ->type_name("S")
      ->check(IsWholeNumber(0))
      ->capture_default_str();
}

}  // namespace

void AddBenchFlags(CLI::App& app, BenchFlags& flags) {
  CLI::Option* server = AddServerFlags(app, flags.server);
  app.add_option("--at", flags.server.address, "The same as --server")
      ->type_name("HOST:PORT")
      ->check(IsHostPort())
      ->excludes(server);
  AddLoadFlags(app, flags);
  AddRequestFlags(app, flags);
  flags.json =
      app.add_option("--json", flags.json_file,
                     "Print one JSON object for each level, or write them to "
                     "FILE beside the text")
          ->type_name("[FILE]")
          ->expected(0, 1);
  app.add_flag("--allow-failures", flags.allow_failures,
               "Exit with 0 also when requests have failed");
}

absl::StatusOr<std::vector<LoadLevel>> BenchLevels(const BenchFlags& flags) {
  LoadLevel level;
  level.max_requests = flags.requests;
  if (flags.duration_seconds || !flags.requests) {
    level.duration =
        absl::Seconds(flags.duration_seconds.value_or(kDefaultSeconds));
  }
  std::vector<LoadLevel> levels;
  for (const double rate : flags.request_rates) {
    if (std::isinf(rate) && !flags.requests) {
      return absl::InvalidArgumentError(
          "--request-rate inf needs --requests: how many at once");
    }
    levels.push_back(level);
    levels.back().request_rate = rate;
  }
  for (const uint32_t concurrency : flags.concurrency) {
    levels.push_back(level);
    levels.back().concurrency = concurrency;
  }
  if (levels.empty()) {
    levels.push_back(level);
    levels.back().concurrency = 1;
  }
  return levels;
}

absl::StatusOr<RequestOptions> BenchRequestOptions(const BenchFlags& flags) {
  RequestOptions options;
  ASSIGN_OR_RETURN(options.prompt_tokens,
                   LengthDistribution::Parse(flags.prompt_tokens));
  ASSIGN_OR_RETURN(options.output_tokens,
                   LengthDistribution::Parse(flags.output_tokens));
  options.shared_prefix_tokens = flags.shared_prefix_tokens;
  if (!flags.prompts_file.empty()) {
    ASSIGN_OR_RETURN(options.texts, ReadTexts(flags.prompts_file));
  }
  options.temperature = flags.temperature;
  options.overflow_policy = OverflowPolicyOf(flags.overflow_policy);
  options.exact = flags.exact;
  options.seed = flags.seed;
  return options;
}

}  // namespace expertmesh
