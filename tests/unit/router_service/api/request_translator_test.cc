#include "router_service/api/request_translator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

RequestTranslator::Options Options() {
  RequestTranslator::Options options;
  options.vocab_size = 320;
  options.max_context_tokens = 256;
  options.defaults.eos_token_ids = {2, 7};
  return options;
}

v1::GenerateRequest Request() {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(5);
  return request;
}

TEST(RequestTranslatorTest, DefaultsAreGreedyUpToTheContext) {
  const RequestTranslator translator(Options(), nullptr);
  const auto out = translator.Translate(Request());
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_THAT(out->prompt, ElementsAre(5));
  EXPECT_EQ(out->sampling.temperature, 0);
  EXPECT_EQ(out->max_tokens, 256);
  EXPECT_THAT(out->stop_ids, ElementsAre(2, 7));
  EXPECT_EQ(out->request_id.size(), 16u);
  EXPECT_EQ(out->policy, OverflowPolicy::kWait);
}

TEST(RequestTranslatorTest, PrioritiesAreTakenOver) {
  const RequestTranslator translator(Options(), nullptr);
  v1::GenerateRequest request = Request();
  EXPECT_EQ(translator.Translate(request)->priority, 0);
  request.set_priority(-10);
  EXPECT_EQ(translator.Translate(request)->priority, -10);
  v1::ScoreRequest score;
  score.mutable_token_ids()->add_ids(5);
  score.set_priority(10);
  EXPECT_EQ(translator.Translate(score)->priority, 10);
}

TEST(RequestTranslatorTest, UnsetFieldsTakeTheCheckpointsValues) {
  RequestTranslator::Options options = Options();
  options.defaults.do_sample = true;
  options.defaults.temperature = 0.6f;
  options.defaults.top_k = 20;
  options.defaults.top_p = 0.95f;
  options.defaults.max_new_tokens = 77;
  const RequestTranslator translator(options, nullptr);
  auto out = translator.Translate(Request());
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(out->sampling.temperature, 0.6f);
  EXPECT_EQ(out->sampling.top_k, 20);
  EXPECT_EQ(out->sampling.top_p, 0.95f);
  EXPECT_EQ(out->max_tokens, 77);

  v1::GenerateRequest request = Request();
  request.set_temperature(0);
  request.set_top_k(0);
  request.set_max_tokens(3);
  out = translator.Translate(request);
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(out->sampling.temperature, 0);
  EXPECT_EQ(out->sampling.top_k, 0);
  EXPECT_EQ(out->max_tokens, 3);
}

TEST(RequestTranslatorTest, ATemperatureWithoutDoSampleIsIgnored) {
  RequestTranslator::Options options = Options();
  options.defaults.temperature = 0.6f;
  const auto out = RequestTranslator(options, nullptr).Translate(Request());
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(out->sampling.temperature, 0);
}

TEST(RequestTranslatorTest, IgnoreEosKeepsTheRequestsOwnStops) {
  v1::GenerateRequest request = Request();
  request.set_ignore_eos(true);
  request.add_stop_token_ids(9);
  const auto out = RequestTranslator(Options(), nullptr).Translate(request);
  ASSERT_TRUE(out.ok());
  EXPECT_THAT(out->stop_ids, ElementsAre(9));
}

TEST(RequestTranslatorTest, StopIdsAreSortedAndEachOnce) {
  v1::GenerateRequest request = Request();
  for (int i = 0; i < 100'000; ++i) request.add_stop_token_ids(9 - i % 3);
  const auto out = RequestTranslator(Options(), nullptr).Translate(request);
  ASSERT_TRUE(out.ok());
  EXPECT_THAT(out->stop_ids, ElementsAre(2, 7, 8, 9));
}

TEST(RequestTranslatorTest, MinTokensNeedATokenToSample) {
  RequestTranslator::Options options = Options();
  options.vocab_size = 8;
  options.defaults.eos_token_ids = {2, 7, 99};
  v1::GenerateRequest request = Request();
  for (const uint32_t id : {0, 1, 3, 4, 5, 6}) request.add_stop_token_ids(id);
  const RequestTranslator translator(options, nullptr);
  EXPECT_TRUE(translator.Translate(request).ok());
  request.set_min_tokens(1);
  const auto refused = translator.Translate(request);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("stop_token_ids"));
  request.set_ignore_eos(true);
  EXPECT_TRUE(translator.Translate(request).ok());
}

TEST(RequestTranslatorTest, UnsetStopStringsTakeTheCheckpoints) {
  RequestTranslator::Options options = Options();
  options.defaults.stop_strings = {"END", "STOP"};
  const RequestTranslator translator(options, nullptr);
  v1::GenerateRequest request = Request();
  EXPECT_THAT(translator.StopStringsOf(request), ElementsAre("END", "STOP"));
  request.add_stop("mine");
  EXPECT_THAT(translator.StopStringsOf(request), ElementsAre("mine"));
}

TEST(RequestTranslatorTest, LongTextsAreRefused) {
  EXPECT_TRUE(CheckTextSize(std::string(size_t{16} << 20, 'x')).ok());
  const absl::Status status =
      CheckTextSize(std::string((size_t{16} << 20) + 1, 'x'));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("at most 16777216"));
}

TEST(RequestTranslatorTest, DetokenizesIdsThatOnlyTheModelKnows) {
  const auto tokenizer = Tokenizer::Load(EXPERTMESH_SOURCE_DIR
                                         "/deploy/demo_model/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const uint32_t size = static_cast<uint32_t>((*tokenizer)->vocab_size());
  RequestTranslator::Options options = Options();
  options.vocab_size = size + 10;  // padded
  v1::DetokenizeRequest request;
  const auto ids = (*tokenizer)->Encode("hello", false);
  ASSERT_TRUE(ids.ok()) << ids.status();
  for (const int32_t id : *ids) {
    request.add_token_ids(static_cast<uint32_t>(id));
  }
  request.add_token_ids(size + 9);
  const RequestTranslator translator(options, tokenizer->get());
  auto response = translator.Detokenize(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->text(), "hello");
  request.add_token_ids(size + 10);
  response = translator.Detokenize(request);
  EXPECT_EQ(response.status().code(), absl::StatusCode::kInvalidArgument);
  // A tokenizer larger than the model decodes all it knows.
  const RequestTranslator small(Options(), tokenizer->get());
  request.clear_token_ids();
  request.add_token_ids(size - 1);
  EXPECT_TRUE(small.Detokenize(request).ok());
}

TEST(RequestTranslatorTest, ExactOverridesTheDeployment) {
  RequestTranslator::Options options = Options();
  options.overflow_policy = OverflowPolicy::kDrop;
  const RequestTranslator translator(options, nullptr);
  v1::GenerateRequest request = Request();
  EXPECT_EQ(translator.Translate(request)->policy, OverflowPolicy::kDrop);
  EXPECT_FALSE(translator.Translate(request)->exact);
  request.set_exact(true);
  EXPECT_EQ(translator.Translate(request)->policy, OverflowPolicy::kWait);
  EXPECT_TRUE(translator.Translate(request)->exact);
  request.set_exact(false);
  request.set_overflow_policy(v1::OVERFLOW_POLICY_NEXT_BEST);
  EXPECT_EQ(translator.Translate(request)->policy, OverflowPolicy::kNextBest);
}

TEST(RequestTranslatorTest, TextNeedsATokenizer) {
  v1::GenerateRequest request;
  request.set_text("hello");
  const auto out = RequestTranslator(Options(), nullptr).Translate(request);
  EXPECT_EQ(out.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(out.status().message()), HasSubstr("token ids"));
}

struct BadField {
  const char* name;
  std::function<void(v1::GenerateRequest&)> set;
};

class BadFieldTest : public ::testing::TestWithParam<BadField> {};

TEST_P(BadFieldTest, IsRefusedByName) {
  v1::GenerateRequest request = Request();
  GetParam().set(request);
  const auto out = RequestTranslator(Options(), nullptr).Translate(request);
  EXPECT_EQ(out.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(out.status().message()), HasSubstr(GetParam().name));
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

INSTANTIATE_TEST_SUITE_P(
    Fields, BadFieldTest,
    ::testing::Values(
        BadField{"prompt", [](auto& r) { r.clear_prompt(); }},
        BadField{"320", [](auto& r) { r.mutable_token_ids()->add_ids(320); }},
        BadField{"token 2 of the prompt",
                 [](auto& r) { r.mutable_token_ids()->add_ids(~0u); }},
        BadField{"at most 256 fit",
                 [](auto& r) {
                   for (int i = 0; i < 256; ++i) {
                     r.mutable_token_ids()->add_ids(1);
                   }
                 }},
        BadField{"max_tokens", [](auto& r) { r.set_max_tokens(0); }},
        BadField{"min_tokens",
                 [](auto& r) {
                   r.set_min_tokens(5);
                   r.set_max_tokens(4);
                 }},
        BadField{"temperature", [](auto& r) { r.set_temperature(-1); }},
        BadField{"temperature", [](auto& r) { r.set_temperature(kNan); }},
        BadField{"top_p", [](auto& r) { r.set_top_p(0); }},
        BadField{"top_p", [](auto& r) { r.set_top_p(1.5f); }},
        BadField{"top_p", [](auto& r) { r.set_top_p(kNan); }},
        BadField{"min_p", [](auto& r) { r.set_min_p(2); }},
        BadField{"repetition_penalty",
                 [](auto& r) { r.set_repetition_penalty(0); }},
        BadField{"presence_penalty",
                 [](auto& r) { r.set_presence_penalty(3); }},
        BadField{"frequency_penalty",
                 [](auto& r) { r.set_frequency_penalty(-2.5f); }},
        BadField{"logprobs", [](auto& r) { r.set_logprobs(21); }},
        BadField{"priority is 11; it must be from -10 to 10",
                 [](auto& r) { r.set_priority(11); }},
        BadField{"priority", [](auto& r) { r.set_priority(-11); }},
        BadField{"prompt_logprobs", [](auto& r) { r.set_prompt_logprobs(21); }},
        BadField{"stop", [](auto& r) { r.add_stop(""); }},
        BadField{"at most 16 are accepted",
                 [](auto& r) {
                   for (int i = 0; i < 17; ++i) r.add_stop(std::string(1, 'x'));
                 }},
        BadField{"1025 bytes; at most 1024",
                 [](auto& r) { r.add_stop(std::string(1025, 'x')); }},
        BadField{"token 1 of stop_token_ids",
                 [](auto& r) { r.add_stop_token_ids(320); }},
        BadField{"more than 256 different",
                 [](auto& r) {
                   for (int i = 0; i < 257; ++i) r.add_stop_token_ids(i);
                 }},
        BadField{"overflow_policy",
                 [](auto& r) {
                   r.set_overflow_policy(static_cast<v1::OverflowPolicy>(9));
                 }},
        BadField{"exact",
                 [](auto& r) {
                   r.set_exact(true);
                   r.set_overflow_policy(v1::OVERFLOW_POLICY_DROP);
                 }},
        BadField{"request_id",
                 [](auto& r) { r.set_request_id(std::string(129, 'x')); }}));

}  // namespace
}  // namespace expertmesh::router
