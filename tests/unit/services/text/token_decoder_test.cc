#include "services/text/token_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertmesh::text {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json Sequence(json decoders) {
  return {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
}
const json kByteFallback = {{"type", "ByteFallback"}};
const json kFuse = {{"type", "Fuse"}};
const json kByteLevel = {{"type", "ByteLevel"}};

json Strip(int start, int stop) {
  return {
      {"type", "Strip"}, {"content", " "}, {"start", start}, {"stop", stop}};
}

json Replace(const char* kind, const char* pattern, const char* content) {
  return {{"type", "Replace"},
          {"pattern", {{kind, pattern}}},
          {"content", content}};
}

absl::StatusOr<TokenDecoder> Build(const json& config) {
  const json root = {{"decoder", config}};
  return TokenDecoder::Build(ConfigNode(&root, ""));
}

// What each token settles, and what the end does.
std::vector<std::string> Pieces(const json& config,
                                const std::vector<std::string>& tokens) {
  const auto decoder = Build(config);
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  if (!decoder.ok()) return {};
  DecodeStream stream(&*decoder);
  std::vector<std::string> pieces;
  for (std::string token : tokens) {
    EXPECT_TRUE(decoder->Prepare(&token).ok());
    stream.Push(token);
    pieces.push_back(stream.Take());
  }
  stream.Finish();
  pieces.push_back(stream.Take());
  return pieces;
}

TEST(TokenDecoderTest, ByteLevelHoldsHalfCharacters) {
  // é is C3 A9; then a lead byte that never ends.
  EXPECT_THAT(Pieces(kByteLevel, {"aÃ", "©b", "Ã", "x", "Ã"}),
              ElementsAre("a", "éb", "", "\uFFFDx", "", "\uFFFD"));
}

TEST(TokenDecoderTest, ByteLevelPassesTokensOutsideItsAlphabet) {
  EXPECT_THAT(Pieces(kByteLevel, {"<｜x｜>", "Ġy"}),
              ElementsAre("<｜x｜>", " y", ""));
}

TEST(TokenDecoderTest, ByteFallbackHoldsRuns) {
  const json decoder = Sequence({kByteFallback, kFuse});
  EXPECT_THAT(Pieces(decoder, {"<0xC3>", "<0xA9>", "z", "<0x41>"}),
              ElementsAre("", "", "éz", "", "A"));
  // One bad byte spoils the whole run, even its whole characters.
  EXPECT_THAT(Pieces(decoder, {"<0x41>", "<0xC3>", "z"}),
              ElementsAre("", "", "\uFFFD\uFFFDz", ""));
  EXPECT_THAT(Pieces(decoder, {"<0xZZ>", "<0x411>"}),
              ElementsAre("<0xZZ>", "<0x411>", ""));
}

TEST(TokenDecoderTest, StripAfterFuseSeesOneText) {
  const json decoder = Sequence({kFuse, Strip(2, 1)});
  EXPECT_THAT(Pieces(decoder, {" ", " ", " a", " ", "b ", "  "}),
              ElementsAre("", "", " a", "", " b", "  ", ""));
}

TEST(TokenDecoderTest, StripBeforeFuseSeesEveryToken) {
  EXPECT_THAT(Pieces(Sequence({Strip(1, 1), kFuse}), {"  a ", " b"}),
              ElementsAre(" a", "b", ""));
}

TEST(TokenDecoderTest, ReplaceAfterFuseSpansTokens) {
  const json decoder = Sequence({kFuse, Replace("String", "aab", "X")});
  EXPECT_THAT(Pieces(decoder, {"a", "a", "a", "b", "aa"}),
              ElementsAre("", "", "a", "X", "", "aa"));
}

TEST(TokenDecoderTest, ReplaceByRegexComesFirst) {
  EXPECT_THAT(
      Pieces(Sequence({Replace("Regex", "[_e]+", " "), kFuse}), {"_he_e", "x"}),
      ElementsAre(" h ", "x", ""));
  EXPECT_THAT(
      Build(Sequence({kFuse, Replace("Regex", "a", "")})).status().message(),
      HasSubstr("Regex after other decoders"));
}

TEST(TokenDecoderTest, MetaspaceDropsTheFirstTokensMarks) {
  const json decoder = {
      {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}};
  EXPECT_THAT(Pieces(decoder, {"▁a▁b", "▁c"}), ElementsAre("ab", " c", ""));
}

TEST(TokenDecoderTest, WithoutDecoderTokensAreJoinedBySpaces) {
  EXPECT_THAT(Pieces(nullptr, {"a", "b"}), ElementsAre("a", " b", ""));
}

TEST(TokenDecoderTest, StartsAfreshAfterFinish) {
  const auto decoder = Build(Sequence({kFuse, Strip(1, 0)}));
  ASSERT_TRUE(decoder.ok());
  DecodeStream stream(&*decoder);
  for (int i = 0; i < 2; ++i) {
    stream.Push(" a");
    stream.Finish();
    EXPECT_EQ(stream.Take(), "a");
  }
}

TEST(TokenDecoderTest, RefusesOrdersWithoutMeaning) {
  EXPECT_THAT(Build(Sequence({kFuse, kByteFallback})).status().message(),
              HasSubstr("decoder.decoders[1]: is not supported after Fuse"));
  EXPECT_FALSE(Build(Sequence({kByteLevel, kByteLevel})).ok());
  EXPECT_THAT(Build({{"type", "CTC"}}).status().message(), HasSubstr("CTC"));
}

}  // namespace
}  // namespace expertmesh::text
