// A stream that goes on where a prompt ended.

#include <gtest/gtest.h>

#include "services/text/tokenizer.h"
#include "tests/unit/services/text/tokenizer_test_util.h"

namespace expertmesh {
namespace {

using nlohmann::json;

// As SentencePiece models are exported.
const json kSentencePiece = {
    {"type", "Sequence"},
    {"decoders",
     {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
      {{"type", "ByteFallback"}},
      {{"type", "Fuse"}},
      {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
const json kByteLevel = {{"type", "ByteLevel"}};

class Model {
 public:
  Model(const json& decoder, const std::vector<std::string>& tokens) {
    auto tokenizer = LoadText(
        json({{"model", ModelOf(tokens)}, {"decoder", decoder}}).dump());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  // The text that streams for tokens `generated` after `prompt`.
  std::string Stream(const std::vector<std::string>& prompt,
                     const std::vector<std::string>& generated) const {
    StreamingDetokenizer stream(tokenizer_.get(), /*skip_special=*/true);
    stream.Resume(Ids(prompt));
    std::string text;
    for (const int32_t id : Ids(generated)) text += stream.Push(id);
    return text + stream.Flush();
  }

 private:
  std::vector<int32_t> Ids(const std::vector<std::string>& tokens) const {
    std::vector<int32_t> ids;
    for (const std::string& token : tokens) {
      ids.push_back(tokenizer_->TokenId(token).value());
    }
    return ids;
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST(StreamingDetokenizerTest, KeepsTheSpaceOfTheFirstNewWord) {
  const Model model(kSentencePiece, {"▁The", "▁cat", "<0xE2>"});
  EXPECT_EQ(model.Stream({"▁The"}, {"▁cat"}), " cat");
  EXPECT_EQ(model.Stream({"▁The", "▁cat"}, {"▁cat", "▁cat"}), " cat cat");
  EXPECT_EQ(model.Stream({}, {"▁cat"}), "cat");
}

TEST(StreamingDetokenizerTest, BytesThePromptLeftUnfinishedAreNotShown) {
  const Model spm(kSentencePiece, {"a", "<0xE2>", "<0x82>", "<0xAC>"});
  EXPECT_EQ(spm.Stream({"a", "<0xE2>", "<0x82>"}, {"a"}), "a");
  EXPECT_EQ(spm.Stream({"a", "<0xE2>", "<0x82>"}, {}), "");
  // A character that the model completes comes whole.
  EXPECT_EQ(spm.Stream({"a", "<0xE2>", "<0x82>"}, {"<0xAC>", "a"}), "€a");
  // One that was whole before does not come again.
  EXPECT_EQ(spm.Stream({"<0xE2>", "<0x82>", "<0xAC>"}, {"a"}), "a");
  EXPECT_EQ(spm.Stream({"<0xE2>", "<0x82>", "<0xAC>"},
                       {"<0xE2>", "<0x82>", "<0xAC>"}),
            "€");

  // é is C3 A9, written Ã ©.
  const Model bytes(kByteLevel, {"a", "Ã", "©", "x"});
  EXPECT_EQ(bytes.Stream({"a", "Ã"}, {"x"}), "x");
  EXPECT_EQ(bytes.Stream({"a", "Ã"}, {}), "");
  EXPECT_EQ(bytes.Stream({"a", "Ã"}, {"©", "x"}), "éx");
}

TEST(StreamingDetokenizerTest, BytesTheOutputLeavesUnfinishedAreShown) {
  const Model bytes(kByteLevel, {"a", "Ã"});
  EXPECT_EQ(bytes.Stream({"a"}, {"a", "Ã"}), "a\uFFFD");
}

}  // namespace
}  // namespace expertmesh
