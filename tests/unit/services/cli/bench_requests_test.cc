#include "services/cli/bench_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

namespace expertmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::Model SmallModel() {
  v1::Model model;
  model.set_name("small");
  model.set_vocab_size(100);
  model.set_max_context_tokens(64);
  model.set_has_tokenizer(true);
  return model;
}

RequestOptions Options() {
  RequestOptions options;
  options.prompt_tokens = *LengthDistribution::Parse("uniform:8-32");
  options.output_tokens = *LengthDistribution::Parse("uniform:2-16");
  options.seed = 5;
  return options;
}

std::vector<uint32_t> Ids(const v1::GenerateRequest& request) {
  return {request.token_ids().ids().begin(), request.token_ids().ids().end()};
}

TEST(RequestMaker, TheSameSeedMakesTheSameRequests) {
  const RequestMaker one(Options(), SmallModel());
  const RequestMaker two(Options(), SmallModel());
  RequestOptions options = Options();
  options.seed = 6;
  const RequestMaker other(options, SmallModel());
  for (uint64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(one.Make(1, i).SerializeAsString(),
              two.Make(1, i).SerializeAsString());
    EXPECT_NE(Ids(one.Make(1, i)), Ids(one.Make(1, i + 1)));
    EXPECT_NE(Ids(one.Make(1, i)), Ids(other.Make(1, i)));
  }
}

TEST(RequestMaker, RoundsDifferInTokensNotInLengths) {
  const RequestMaker maker(Options(), SmallModel());
  for (uint64_t i = 0; i < 20; ++i) {
    const v1::GenerateRequest first = maker.Make(0, i);
    const v1::GenerateRequest second = maker.Make(1, i);
    EXPECT_EQ(first.token_ids().ids_size(), second.token_ids().ids_size());
    EXPECT_EQ(first.max_tokens(), second.max_tokens());
    EXPECT_NE(Ids(first), Ids(second));
  }
}

TEST(RequestMaker, TokensAreOfTheVocabularyAndOutputsAsLongAsAsked) {
  const RequestMaker maker(Options(), SmallModel());
  uint32_t least = 100, most = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    const v1::GenerateRequest request = maker.Make(0, i);
    for (const uint32_t id : Ids(request)) {
      least = std::min(least, id);
      most = std::max(most, id);
    }
    EXPECT_EQ(request.min_tokens(), request.max_tokens());
    EXPECT_TRUE(request.ignore_eos());
    EXPECT_TRUE(request.has_seed());
    EXPECT_FALSE(request.has_temperature());
  }
  EXPECT_EQ(least, 0);
  EXPECT_EQ(most, 99);
}

TEST(RequestMaker, ASharedPrefixComesBeforeEveryPrompt) {
  RequestOptions options = Options();
  options.prompt_tokens = *LengthDistribution::Parse("4");
  options.shared_prefix_tokens = 10;
  const RequestMaker maker(options, SmallModel());
  const std::vector<uint32_t> first = Ids(maker.Make(0, 0));
  const std::vector<uint32_t> second = Ids(maker.Make(3, 1));
  ASSERT_EQ(first.size(), 14);
  ASSERT_EQ(second.size(), 14);
  EXPECT_TRUE(std::equal(first.begin(), first.begin() + 10, second.begin()));
  EXPECT_NE(first, second);
}

TEST(RequestMaker, TextsAreAskedInTurn) {
  RequestOptions options = Options();
  options.texts = {"a", "b"};
  options.temperature = 0.5f;
  options.exact = true;
  const RequestMaker maker(options, SmallModel());
  EXPECT_EQ(maker.Make(0, 0).text(), "a");
  EXPECT_EQ(maker.Make(0, 1).text(), "b");
  EXPECT_EQ(maker.Make(0, 2).text(), "a");
  EXPECT_EQ(maker.Make(0, 0).temperature(), 0.5f);
  EXPECT_TRUE(maker.Make(0, 0).exact());
}

TEST(RequestMaker, TheLongestRequestMustFitTheContext) {
  RequestOptions options = Options();
  EXPECT_TRUE(RequestMaker(options, SmallModel()).Check().ok());
  options.shared_prefix_tokens = 16;  // 16 + 32 + 16 = 64
  EXPECT_TRUE(RequestMaker(options, SmallModel()).Check().ok());
  options.shared_prefix_tokens = 17;
  const absl::Status status = RequestMaker(options, SmallModel()).Check();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("64 tokens"));
}

TEST(RequestMaker, TextsNeedATokenizer) {
  RequestOptions options = Options();
  options.texts = {"a"};
  v1::Model model = SmallModel();
  model.set_has_tokenizer(false);
  EXPECT_EQ(RequestMaker(options, model).Check().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ReadTexts, LinesWithoutEmptyOnes) {
  const std::string path = ::testing::TempDir() + "/bench_texts";
  std::ofstream(path) << "one\r\n\ntwo\nthree";
  EXPECT_THAT(*ReadTexts(path), ElementsAre("one", "two", "three"));
  std::ofstream(path) << "one\n\xff\n";
  EXPECT_THAT(std::string(ReadTexts(path).status().message()),
              HasSubstr("line 2"));
  std::ofstream(path) << "\n";
  EXPECT_EQ(ReadTexts(path).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTexts("/no/such/file").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace expertmesh
