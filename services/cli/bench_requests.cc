#include "services/cli/bench_requests.h"

#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "services/cli/flags.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

uint32_t RandomToken(std::mt19937_64& random, uint32_t vocab_size) {
  return static_cast<uint32_t>(UnitNumber(random) * vocab_size);
}

}  // namespace

uint64_t DerivedSeed(uint64_t seed, absl::string_view purpose, uint32_t round,
                     uint64_t index) {
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  std::vector<uint32_t> parts = {high(seed), low(seed), round, high(index),
                                 low(index)};
  parts.insert(parts.end(), purpose.begin(), purpose.end());
  std::seed_seq sequence(parts.begin(), parts.end());
  uint32_t words[2];
  sequence.generate(words, words + 2);
  return uint64_t{words[0]} << 32 | words[1];
}

RequestMaker::RequestMaker(const RequestOptions& options,
                           const v1::Model& model)
    : options_(options), model_(model) {
  std::mt19937_64 random(DerivedSeed(options_.seed, "prefix", 0, 0));
  for (uint32_t i = 0; i < options_.shared_prefix_tokens; ++i) {
    prefix_.push_back(RandomToken(random, model_.vocab_size()));
  }
}

absl::Status RequestMaker::Check() const {
  if (!options_.texts.empty() && !model_.has_tokenizer()) {
    return absl::InvalidArgumentError(absl::StrCat(
        model_.name(), " has no tokenizer: give lengths instead of texts"));
  }
  // Only the server knows how many tokens a text has.
  const uint64_t prompt = options_.texts.empty()
                              ? uint64_t{options_.shared_prefix_tokens} +
                                    options_.prompt_tokens.max()
                              : 1;
  const uint64_t output = options_.output_tokens.max();
  if (prompt + output <= model_.max_context_tokens()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("prompts of up to ", prompt, " tokens and outputs of up to ",
                   output, " do not fit the context of ", model_.name(), ", ",
                   model_.max_context_tokens(), " tokens"));
}

v1::GenerateRequest RequestMaker::Make(uint32_t round, uint64_t index) const {
  v1::GenerateRequest request;
  std::mt19937_64 lengths(DerivedSeed(options_.seed, "lengths", 0, index));
  const uint32_t prompt_tokens = options_.prompt_tokens.Sample(lengths);
  const uint32_t output_tokens = options_.output_tokens.Sample(lengths);
  if (options_.texts.empty()) {
    std::mt19937_64 random(DerivedSeed(options_.seed, "prompt", round, index));
    auto& ids = *request.mutable_token_ids()->mutable_ids();
    ids.Add(prefix_.begin(), prefix_.end());
    for (uint32_t i = 0; i < prompt_tokens; ++i) {
      ids.Add(RandomToken(random, model_.vocab_size()));
    }
  } else {
    request.set_text(options_.texts[index % options_.texts.size()]);
  }
  request.set_max_tokens(output_tokens);
  request.set_min_tokens(output_tokens);
  request.set_ignore_eos(true);
  request.set_seed(DerivedSeed(options_.seed, "sampling", round, index));
  if (options_.temperature) request.set_temperature(*options_.temperature);
  request.set_overflow_policy(options_.overflow_policy);
  request.set_exact(options_.exact);
  return request;
}

absl::StatusOr<std::vector<std::string>> ReadTexts(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(path));
  std::vector<std::string> texts;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(contents, '\n')) {
    ++number;
    absl::ConsumeSuffix(&line, "\r");
    if (line.empty()) continue;
    if (const absl::Status utf8 = CheckUtf8(line); !utf8.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ", line ", number, ": ", utf8.message()));
    }
    texts.emplace_back(line);
  }
  if (!texts.empty()) return texts;
  return absl::InvalidArgumentError(absl::StrCat(path, " has no text"));
}

}  // namespace expertmesh
