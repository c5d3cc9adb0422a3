#include "router_service/api/request_translator.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/core/status_macros.h"

namespace expertmesh::router {
namespace {

constexpr uint32_t kMaxLogprobs = 20;
constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxStopIds = 256;
constexpr size_t kMaxTextBytes = size_t{16} << 20;
constexpr int kMaxDetokenizedIds = 1 << 20;
// Of the longest tokens in use (runs of spaces), with room to spare.
constexpr int64_t kMaxBytesPerToken = 512;
constexpr int32_t kMaxPriority = 10;

uint64_t RandomNumber() {
  static thread_local std::mt19937_64 generator{std::random_device{}()};
  return generator();
}

absl::Status CheckRange(absl::string_view field, float value, float low,
                        float high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " is ", value, "; it must be from ", low, " to ", high));
}

absl::StatusOr<int32_t> CheckLogprobs(absl::string_view field, uint32_t value) {
  if (value <= kMaxLogprobs) return static_cast<int32_t>(value);
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value,
                                                 "; at most ", kMaxLogprobs,
                                                 " alternatives are reported"));
}

absl::StatusOr<int32_t> CheckPriority(int32_t value) {
  if (value >= -kMaxPriority && value <= kMaxPriority) return value;
  return absl::InvalidArgumentError(
      absl::StrCat("priority is ", value, "; it must be from ", -kMaxPriority,
                   " to ", kMaxPriority));
}

absl::StatusOr<std::string> CheckRequestId(const std::string& id) {
  if (id.empty()) return RandomRequestId();
  if (id.size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("request_id has ", id.size(), " bytes; at most ",
                     kMaxRequestIdBytes, " are accepted"));
  }
  return id;
}

// Names the place of an id, never the id: messages are logged.
absl::Status OutsideVocabulary(int index, absl::string_view list,
                               int64_t vocab_size) {
  return absl::InvalidArgumentError(
      absl::StrCat("token ", index + 1, " of ", list,
                   " is outside the vocabulary of ", vocab_size));
}

}  // namespace

absl::Status CheckTextSize(absl::string_view text) {
  if (text.size() <= kMaxTextBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the text has ", text.size(), " bytes; at most ",
                   kMaxTextBytes, " are accepted, so send it in parts"));
}

std::string RandomRequestId() {
  return absl::StrFormat("%016x", RandomNumber());
}

absl::StatusOr<const Tokenizer*> RequestTranslator::tokenizer() const {
  if (tokenizer_ == nullptr) {
    return absl::FailedPreconditionError(
        "the model has no tokenizer.json; send token ids");
  }
  return tokenizer_;
}

absl::StatusOr<std::vector<int32_t>> RequestTranslator::PromptFromText(
    const std::string& text) const {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, this->tokenizer());
  // Hopeless texts are not worth tokenizing.
  if (static_cast<int64_t>(text.size()) >
      kMaxBytesPerToken * options_.max_context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", text.size(), " bytes, but at most ",
                     options_.max_context_tokens, " tokens fit; shorten it"));
  }
  return tokenizer->Encode(text, /*add_special_tokens=*/true);
}

absl::StatusOr<std::vector<int32_t>> RequestTranslator::PromptFromIds(
    const v1::TokenIds& ids) const {
  if (ids.ids_size() > options_.max_context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", ids.ids_size(), " tokens, but at most ",
                     options_.max_context_tokens, " fit; shorten it"));
  }
  for (int i = 0; i < ids.ids_size(); ++i) {
    if (ids.ids(i) < options_.vocab_size) continue;
    return OutsideVocabulary(i, "the prompt", options_.vocab_size);
  }
  return std::vector<int32_t>(ids.ids().begin(), ids.ids().end());
}

absl::StatusOr<v1::TokenizeResponse> RequestTranslator::Tokenize(
    const v1::TokenizeRequest& request) const {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, this->tokenizer());
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   tokenizer->Encode(request.text(), !request.no_special()));
  v1::TokenizeResponse response;
  response.mutable_token_ids()->Add(ids.begin(), ids.end());
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> RequestTranslator::Detokenize(
    const v1::DetokenizeRequest& request) const {
  ASSIGN_OR_RETURN(const Tokenizer* tokenizer, this->tokenizer());
  if (request.token_ids_size() > kMaxDetokenizedIds) {
    return absl::InvalidArgumentError(absl::StrCat(
        request.token_ids_size(), " token ids; at most ", kMaxDetokenizedIds,
        " are accepted, so send them in "
        "parts"));
  }
  const int64_t vocab_size =
      std::max<int64_t>(tokenizer->vocab_size(), options_.vocab_size);
  for (int i = 0; i < request.token_ids_size(); ++i) {
    if (request.token_ids(i) < vocab_size) continue;
    return OutsideVocabulary(i, "the request", vocab_size);
  }
  const std::vector<int32_t> ids(request.token_ids().begin(),
                                 request.token_ids().end());
  v1::DetokenizeResponse response;
  response.set_text(tokenizer->Decode(ids, request.skip_special()));
  return response;
}

absl::StatusOr<OverflowPolicy> RequestTranslator::Policy(
    v1::OverflowPolicy policy, bool exact) const {
  const bool changes_routing = policy == v1::OVERFLOW_POLICY_NEXT_BEST ||
                               policy == v1::OVERFLOW_POLICY_DROP;
  if (exact && changes_routing) {
    return absl::InvalidArgumentError(
        "exact contradicts an overflow_policy that changes routing; send one "
        "of the two");
  }
  if (exact) return OverflowPolicy::kWait;
  switch (policy) {
    case v1::OVERFLOW_POLICY_UNSPECIFIED:
      return overflow_policy_.load(std::memory_order_relaxed);
    case v1::OVERFLOW_POLICY_WAIT:
      return OverflowPolicy::kWait;
    case v1::OVERFLOW_POLICY_NEXT_BEST:
      return OverflowPolicy::kNextBest;
    case v1::OVERFLOW_POLICY_DROP:
      return OverflowPolicy::kDrop;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("overflow_policy ", static_cast<int>(policy),
                       " is unknown (known: 1 wait, 2 next_best, 3 drop)"));
  }
}

absl::StatusOr<SamplingParams> RequestTranslator::Sampling(
    const v1::GenerateRequest& request) const {
  const GenerationDefaults& defaults = options_.defaults;
  SamplingParams params;
  if (request.has_temperature()) {
    params.temperature = request.temperature();
  } else if (defaults.do_sample.value_or(false)) {
    params.temperature = defaults.temperature.value_or(1.0f);
  }
  params.top_k = request.has_top_k()
                     ? static_cast<int32_t>(std::min<int64_t>(
                           request.top_k(), options_.vocab_size))
                     : defaults.top_k.value_or(0);
  params.top_p =
      request.has_top_p() ? request.top_p() : defaults.top_p.value_or(1.0f);
  params.min_p =
      request.has_min_p() ? request.min_p() : defaults.min_p.value_or(0.0f);
  params.repetition_penalty = request.has_repetition_penalty()
                                  ? request.repetition_penalty()
                                  : defaults.repetition_penalty.value_or(1.0f);
  params.presence_penalty = request.presence_penalty();
  params.frequency_penalty = request.frequency_penalty();
  params.seed = request.has_seed() ? request.seed() : RandomNumber();

  RETURN_IF_ERROR(CheckRange("temperature", params.temperature, 0, 100));
  RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0, 1));
  RETURN_IF_ERROR(
      CheckRange("presence_penalty", params.presence_penalty, -2, 2));
  RETURN_IF_ERROR(
      CheckRange("frequency_penalty", params.frequency_penalty, -2, 2));
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "top_p is ", params.top_p, "; it must be above 0 and at most 1"));
  }
  if (!(params.repetition_penalty > 0 &&
        std::isfinite(params.repetition_penalty))) {
    return absl::InvalidArgumentError(absl::StrCat("repetition_penalty is ",
                                                   params.repetition_penalty,
                                                   "; it must be above 0"));
  }
  return params;
}

absl::Status RequestTranslator::CheckStopStrings(
    const v1::GenerateRequest& request) const {
  if (request.stop_size() > kMaxStops) {
    return absl::InvalidArgumentError(absl::StrCat(request.stop_size(),
                                                   " stop strings; at most ",
                                                   kMaxStops, " are accepted"));
  }
  for (const std::string& stop : request.stop()) {
    if (stop.empty()) {
      return absl::InvalidArgumentError("a stop string is empty; leave it out");
    }
    if (stop.size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a stop string has ", stop.size(), " bytes; at most ",
                       kMaxStopBytes, " are accepted"));
    }
  }
  return request.stop_size() > 0 ? tokenizer().status() : absl::OkStatus();
}

std::vector<std::string> RequestTranslator::StopStringsOf(
    const v1::GenerateRequest& request) const {
  if (request.stop_size() == 0) return options_.defaults.stop_strings;
  return {request.stop().begin(), request.stop().end()};
}

absl::StatusOr<std::vector<int32_t>> RequestTranslator::StopIds(
    const v1::GenerateRequest& request) const {
  std::set<int32_t> ids;
  for (int i = 0; i < request.stop_token_ids_size(); ++i) {
    const uint32_t id = request.stop_token_ids(i);
    if (id >= options_.vocab_size) {
      return OutsideVocabulary(i, "stop_token_ids", options_.vocab_size);
    }
    ids.insert(static_cast<int32_t>(id));
    if (ids.size() > kMaxStopIds) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop_token_ids lists more than ", kMaxStopIds,
                       " different ids, which is the most accepted"));
    }
  }
  if (!request.ignore_eos()) {
    ids.insert(options_.defaults.eos_token_ids.begin(),
               options_.defaults.eos_token_ids.end());
  }
  return std::vector<int32_t>(ids.begin(), ids.end());
}

absl::Status RequestTranslator::CheckMinTokens(
    const SequenceRequest& request) const {
  if (request.min_tokens > request.max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_tokens ", request.min_tokens, " is above max_tokens ",
                     request.max_tokens));
  }
  // Ascending and each once, so those below the size are all or not.
  const auto end = std::lower_bound(
      request.stop_ids.begin(), request.stop_ids.end(), options_.vocab_size);
  if (request.min_tokens > 0 &&
      end - request.stop_ids.begin() == options_.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stop_token_ids and the end-of-sequence tokens are the whole "
        "vocabulary, so there are no min_tokens ",
        request.min_tokens, " to sample; list fewer"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SequenceRequest> RequestTranslator::Translate(
    const v1::GenerateRequest& request) const {
  SequenceRequest out;
  ASSIGN_OR_RETURN(out.request_id, CheckRequestId(request.request_id()));
  // Cheap checks first: tokenizing a long text for nothing helps nobody.
  ASSIGN_OR_RETURN(out.sampling, Sampling(request));
  ASSIGN_OR_RETURN(out.policy,
                   Policy(request.overflow_policy(), request.exact()));
  out.exact = request.exact();
  ASSIGN_OR_RETURN(out.priority, CheckPriority(request.priority()));
  RETURN_IF_ERROR(CheckStopStrings(request));
  if (request.has_logprobs()) {
    ASSIGN_OR_RETURN(out.logprobs,
                     CheckLogprobs("logprobs", request.logprobs()));
  }
  if (request.has_prompt_logprobs()) {
    ASSIGN_OR_RETURN(
        out.prompt_logprobs,
        CheckLogprobs("prompt_logprobs", request.prompt_logprobs()));
  }
  out.max_tokens = options_.max_context_tokens;
  if (request.has_max_tokens()) {
    out.max_tokens = request.max_tokens();
  } else if (options_.defaults.max_new_tokens) {
    out.max_tokens = *options_.defaults.max_new_tokens;
  }
  if (out.max_tokens < 1) {
    return absl::InvalidArgumentError("max_tokens must be at least 1");
  }
  out.min_tokens =
      request.has_min_tokens()
          ? request.min_tokens()
          : std::min<int64_t>(options_.defaults.min_new_tokens.value_or(0),
                              out.max_tokens);
  out.expert_counts = request.expert_counts();
  ASSIGN_OR_RETURN(out.stop_ids, StopIds(request));
  RETURN_IF_ERROR(CheckMinTokens(out));

  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText: {
      ASSIGN_OR_RETURN(out.prompt, PromptFromText(request.text()));
      break;
    }
    case v1::GenerateRequest::kTokenIds: {
      ASSIGN_OR_RETURN(out.prompt, PromptFromIds(request.token_ids()));
      break;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return absl::InvalidArgumentError(
          "the request has no prompt; set text or token_ids");
  }
  return out;
}

absl::StatusOr<SequenceRequest> RequestTranslator::Translate(
    const v1::ScoreRequest& request) const {
  SequenceRequest out;
  ASSIGN_OR_RETURN(out.request_id, CheckRequestId(request.request_id()));
  ASSIGN_OR_RETURN(out.policy,
                   Policy(request.overflow_policy(), request.exact()));
  out.exact = request.exact();
  ASSIGN_OR_RETURN(out.priority, CheckPriority(request.priority()));
  out.prompt_logprobs = 0;
  switch (request.input_case()) {
    case v1::ScoreRequest::kText: {
      ASSIGN_OR_RETURN(out.prompt, PromptFromText(request.text()));
      break;
    }
    case v1::ScoreRequest::kTokenIds: {
      ASSIGN_OR_RETURN(out.prompt, PromptFromIds(request.token_ids()));
      break;
    }
    case v1::ScoreRequest::INPUT_NOT_SET:
      return absl::InvalidArgumentError(
          "the request has no input; set text or token_ids");
  }
  return out;
}

}  // namespace expertmesh::router
