#include "services/cli/response_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

using nlohmann::json;

TEST(ResponseJson, TokensHaveTheirLists) {
  v1::GenerateResponse response;
  response.set_request_id("r");
  response.add_token_ids(5);
  response.set_text("a\n\"é");
  v1::TokenLogprob* logprob = response.add_logprobs();
  logprob->set_token_id(5);
  logprob->set_logprob(-0.1f);
  const std::string line = ResponseJson(response);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const json parsed = json::parse(line);
  EXPECT_EQ(parsed["tokenIds"], json::parse("[5]"));
  EXPECT_EQ(parsed["text"], "a\n\"é");
  EXPECT_EQ(parsed["logprobs"][0]["tokenId"], 5);
  EXPECT_EQ(parsed["logprobs"][0]["logprob"].get<float>(), -0.1f);
  EXPECT_EQ(parsed["logprobs"][0]["top"], json::array());
  EXPECT_FALSE(parsed.contains("finishReason"));
  EXPECT_FALSE(parsed.contains("usage"));
  EXPECT_FALSE(parsed.contains("routing"));
}

TEST(ResponseJson, EmptyListsArePresent) {
  const json parsed = json::parse(ResponseJson({}));
  EXPECT_EQ(parsed["tokenIds"], json::array());
  EXPECT_EQ(parsed["logprobs"], json::array());
  EXPECT_EQ(parsed["text"], "");
}

TEST(ResponseJson, TheLastMessageHasItsAccountWithZeros) {
  v1::GenerateResponse response;
  response.set_finish_reason(v1::FINISH_REASON_LENGTH);
  response.set_seed(18446744073709551615u);
  response.mutable_usage()->set_prompt_tokens(3);
  response.mutable_routing()->set_primary(12);
  const json parsed = json::parse(ResponseJson(response));
  EXPECT_EQ(parsed["finishReason"], "FINISH_REASON_LENGTH");
  EXPECT_EQ(parsed["usage"]["promptTokens"], 3);
  EXPECT_EQ(parsed["usage"]["generatedTokens"], 0);
  EXPECT_EQ(parsed["routing"]["primary"], 12);
  EXPECT_EQ(parsed["routing"]["dropped"], 0);
  // 64-bit numbers are strings in Protobuf's JSON.
  EXPECT_EQ(parsed["seed"], "18446744073709551615");
}

}  // namespace
}  // namespace expertmesh
