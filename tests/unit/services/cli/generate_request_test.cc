#include "services/cli/generate_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace expertmesh {
namespace {

using ::testing::ElementsAre;

v1::GenerateRequest Parse(std::vector<std::string> arguments) {
  CLI::App app;
  GenerateFlags flags;
  AddGenerateFlags(app, flags);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  app.parse(reversed);
  return MakeGenerateRequest(flags);
}

bool Refused(std::vector<std::string> arguments) {
  try {
    Parse(std::move(arguments));
    return false;
  } catch (const CLI::ParseError&) {
    return true;
  }
}

TEST(GenerateRequest, WhatIsNotGivenStaysUnset) {
  EXPECT_EQ(Parse({}).ByteSizeLong(), 0u);
}

TEST(GenerateRequest, EveryFlagHasItsField) {
  const v1::GenerateRequest request = Parse({"--prompt",
                                             "hello",
                                             "--request-id",
                                             "r1",
                                             "--max-tokens",
                                             "5",
                                             "--min-tokens",
                                             "2",
                                             "--temperature",
                                             "0.5",
                                             "--top-k",
                                             "7",
                                             "--top-p",
                                             "0.25",
                                             "--min-p",
                                             "0.125",
                                             "--repetition-penalty",
                                             "1.5",
                                             "--presence-penalty",
                                             "-0.5",
                                             "--frequency-penalty",
                                             "0.75",
                                             "--seed",
                                             "18446744073709551615",
                                             "--stop",
                                             "[a,b]",
                                             "--stop",
                                             "c",
                                             "--stop-ids",
                                             "8,9",
                                             "--ignore-eos",
                                             "--logprobs",
                                             "0",
                                             "--prompt-logprobs",
                                             "3",
                                             "--overflow-policy",
                                             "next_best",
                                             "--exact",
                                             "--priority",
                                             "-3"});
  EXPECT_EQ(request.text(), "hello");
  EXPECT_EQ(request.priority(), -3);
  EXPECT_EQ(request.request_id(), "r1");
  EXPECT_EQ(request.max_tokens(), 5u);
  EXPECT_EQ(request.min_tokens(), 2u);
  EXPECT_EQ(request.temperature(), 0.5f);
  EXPECT_EQ(request.top_k(), 7u);
  EXPECT_EQ(request.top_p(), 0.25f);
  EXPECT_EQ(request.min_p(), 0.125f);
  EXPECT_EQ(request.repetition_penalty(), 1.5f);
  EXPECT_EQ(request.presence_penalty(), -0.5f);
  EXPECT_EQ(request.frequency_penalty(), 0.75f);
  EXPECT_EQ(request.seed(), 18446744073709551615u);
  EXPECT_THAT(request.stop(), ElementsAre("[a,b]", "c"));
  EXPECT_THAT(request.stop_token_ids(), ElementsAre(8, 9));
  EXPECT_TRUE(request.ignore_eos());
  EXPECT_TRUE(request.has_logprobs());
  EXPECT_EQ(request.prompt_logprobs(), 3u);
  EXPECT_EQ(request.overflow_policy(), v1::OVERFLOW_POLICY_NEXT_BEST);
  EXPECT_TRUE(request.exact());
}

TEST(GenerateRequest, ZeroIsNotUnset) {
  const v1::GenerateRequest request =
      Parse({"--token-ids", "1,2", "--temperature", "0", "--seed", "0"});
  EXPECT_TRUE(request.has_temperature());
  EXPECT_TRUE(request.has_seed());
  EXPECT_THAT(request.token_ids().ids(), ElementsAre(1, 2));
}

TEST(GenerateRequest, AnEmptyPromptIsAPrompt) {
  EXPECT_EQ(Parse({"--prompt", ""}).prompt_case(), v1::GenerateRequest::kText);
}

TEST(GenerateRequest, WrongValuesAreRefused) {
  EXPECT_TRUE(Refused({"--prompt", "a", "--token-ids", "1"}));
  EXPECT_TRUE(Refused({"--prompt", "\xFF"}));
  EXPECT_TRUE(Refused({"--token-ids", "1,a"}));
  EXPECT_TRUE(Refused({"--seed", "-1"}));
  EXPECT_TRUE(Refused({"--seed", "18446744073709551616"}));
  EXPECT_TRUE(Refused({"--seed", ""}));
  EXPECT_TRUE(Refused({"--max-tokens", "-1"}));
  EXPECT_TRUE(Refused({"--overflow-policy", "never"}));
}

}  // namespace
}  // namespace expertmesh
