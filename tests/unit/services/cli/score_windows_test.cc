#include "services/cli/score_windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

using ::testing::ElementsAre;

std::vector<size_t> Sizes(size_t num_ids, const WindowOptions& options) {
  const std::vector<uint32_t> ids(num_ids);
  std::vector<size_t> sizes;
  for (const auto& window : SplitIntoWindows(ids, options)) {
    sizes.push_back(window.size());
  }
  return sizes;
}

TEST(SplitIntoWindows, CoversAllTokensWithoutOverlap) {
  EXPECT_THAT(Sizes(10, {.window = 4}), ElementsAre(4, 4, 2));
  EXPECT_THAT(Sizes(8, {.window = 4}), ElementsAre(4, 4));
  EXPECT_THAT(Sizes(3, {.window = 4}), ElementsAre(3));
  EXPECT_THAT(Sizes(0, {.window = 4}), ElementsAre());
}

TEST(SplitIntoWindows, LeavesOutWhatIsNotWanted) {
  EXPECT_THAT(Sizes(10, {.window = 4, .complete_windows = true}),
              ElementsAre(4, 4));
  EXPECT_THAT(Sizes(10, {.window = 4, .max_windows = 1}), ElementsAre(4));
}

TEST(Scores, ALaterWindowsFirstTokenHasNone) {
  Scores scores;
  scores.AddWindow({-1.0f, -2.0f});
  scores.AddWindow({-3.0f});
  scores.AddWindow({});  // one token alone
  EXPECT_THAT(scores.logprobs,
              ElementsAre(-1.0f, -2.0f, std::nullopt, -3.0f, std::nullopt));
  EXPECT_DOUBLE_EQ(*scores.Mean(), -2.0);
  EXPECT_DOUBLE_EQ(*scores.Perplexity(), std::exp(2.0));
}

TEST(Scores, JsonKeepsFloatsToTheBit) {
  Scores scores;
  scores.AddWindow({-0.1f});
  scores.AddWindow({});
  const nlohmann::json json = nlohmann::json::parse(scores.Json());
  EXPECT_EQ(json["logprobs"][0].get<double>(), double{-0.1f});
  EXPECT_TRUE(json["logprobs"][1].is_null());
  EXPECT_EQ(json["mean"].get<double>(), double{-0.1f});
}

TEST(Scores, NothingScoredHasNoMean) {
  EXPECT_EQ(Scores().Json(),
            R"({"logprobs":[],"mean":null,"perplexity":null})");
}

}  // namespace
}  // namespace expertmesh
