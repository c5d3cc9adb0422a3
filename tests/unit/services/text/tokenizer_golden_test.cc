// Every case of tests/golden/tokenizers, computed by the tokenizers library.

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "services/text/tokenizer.h"
#include "services/text/utf8.h"
#include "tests/unit/services/text/tokenizer_test_util.h"

namespace expertmesh {
namespace {

class TokenizerGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto tokenizer = LoadGolden(GetParam());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerGoldenTest, EncodesAndDecodes) {
  const nlohmann::json cases = ReadGolden(GetParam(), "cases.json");
  ASSERT_FALSE(cases.empty());
  for (const nlohmann::json& c : cases) {
    const auto text = c["text"].get<std::string>();
    SCOPED_TRACE(testing::PrintToString(text));
    const auto with = tokenizer_->Encode(text, /*add_special_tokens=*/true);
    const auto without = tokenizer_->Encode(text, /*add_special_tokens=*/false);
    ASSERT_TRUE(with.ok()) << with.status();
    ASSERT_TRUE(without.ok()) << without.status();
    const auto ids = c["ids_with_special"].get<std::vector<int32_t>>();
    EXPECT_EQ(*with, ids);
    EXPECT_EQ(*without, c["ids_without_special"].get<std::vector<int32_t>>());
    EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special=*/false),
              c["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer_->Decode(ids, /*skip_special=*/true),
              c["decoded_skip_special"].get<std::string>());
  }
}

TEST_P(TokenizerGoldenTest, StreamsWholeCharacters) {
  const nlohmann::json cases = ReadGolden(GetParam(), "stream.json");
  ASSERT_FALSE(cases.empty());
  for (const nlohmann::json& c : cases) {
    const bool skip_special = c["skip_special_tokens"].get<bool>();
    const auto expected = c["text"].get<std::string>();
    SCOPED_TRACE(testing::PrintToString(expected));
    StreamingDetokenizer stream(tokenizer_.get(), skip_special);
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    std::string text;
    for (int32_t id : ids) {
      const std::string piece = stream.Push(id);
      EXPECT_EQ(text::FindInvalidUtf8(piece), std::string::npos);
      text += piece;
    }
    text += stream.Flush();
    EXPECT_EQ(text, expected);
    EXPECT_EQ(tokenizer_->Decode(ids, skip_special), expected);
  }
}

// A text cut anywhere, its first part shown before: the stream gives what the
// whole has more than the part.
TEST_P(TokenizerGoldenTest, ResumesAfterAnyToken) {
  for (const nlohmann::json& c : ReadGolden(GetParam(), "stream.json")) {
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    const std::string whole = tokenizer_->Decode(ids, /*skip_special=*/true);
    for (size_t cut = 0; cut <= ids.size(); ++cut) {
      const auto prompt = absl::MakeConstSpan(ids).first(cut);
      const std::string shown =
          tokenizer_->Decode(prompt, /*skip_special=*/true);
      StreamingDetokenizer stream(tokenizer_.get(), /*skip_special=*/true);
      stream.Resume(prompt);
      std::string text;
      for (size_t i = cut; i < ids.size(); ++i) text += stream.Push(ids[i]);
      text += stream.Flush();
      EXPECT_EQ(text::FindInvalidUtf8(text), std::string::npos);
      if (!absl::StartsWith(whole, shown)) continue;
      EXPECT_EQ(text, whole.substr(shown.size())) << "cut at " << cut;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, TokenizerGoldenTest,
                         testing::ValuesIn(GoldenNames()),
                         [](const auto& info) { return info.param; });

TEST(DemoModelTokenizerTest, RoundTripsHeldOutText) {
  const std::filesystem::path folder =
      std::filesystem::path(EXPERTMESH_SOURCE_DIR) / "deploy/demo_model";
  const auto tokenizer = Tokenizer::Load(folder / "tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 1024);
  EXPECT_EQ((*tokenizer)->TokenId("<|im_end|>"), 2);
  EXPECT_EQ((*tokenizer)->TokenId("no such token"), std::nullopt);
  std::ifstream file(folder / "heldout.txt");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  ASSERT_FALSE(text.empty());
  const auto ids = (*tokenizer)->Encode(text, /*add_special_tokens=*/true);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_LT(ids->size(), text.size() / 2);
  EXPECT_EQ((*tokenizer)->Decode(*ids, /*skip_special=*/true), text);
}

}  // namespace
}  // namespace expertmesh
