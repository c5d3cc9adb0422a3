// Expected pieces are those of the tokenizers library.

#include "services/text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace expertmesh::text {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<std::vector<std::string>> Split(const nlohmann::json& config,
                                               const std::string& text) {
  const nlohmann::json root = {{"pre_tokenizer", config}};
  auto pre_tokenizer = PreTokenizer::Build(ConfigNode(&root, ""));
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  PieceList list(text, /*starts_text=*/true);
  if (auto status = pre_tokenizer->Apply(&list); !status.ok()) return status;
  std::vector<std::string> pieces;
  for (const auto& piece : list.pieces) pieces.emplace_back(list.View(piece));
  return pieces;
}

nlohmann::json SplitConfig(const char* regex, const char* behavior,
                           bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", behavior},
          {"invert", invert}};
}

TEST(SplitTest, EveryBehavior) {
  struct Case {
    const char* behavior;
    bool invert;
    std::vector<std::string> pieces;
  };
  const Case cases[] = {
      {"Removed", false, {"ab", "cd-", "."}},
      {"Removed", true, {"1", "2", " ", " ", "3"}},
      {"Isolated", false, {"ab", "1", "2", " ", " ", "cd-", "3", "."}},
      {"Isolated", true, {"ab", "1", "2", " ", " ", "cd-", "3", "."}},
      {"MergedWithPrevious", false, {"ab1", "2", " ", " ", "cd-3", "."}},
      {"MergedWithPrevious", true, {"ab", "1", "2", " ", " cd-", "3."}},
      {"MergedWithNext", false, {"ab", "1", "2", " ", " cd-", "3."}},
      {"MergedWithNext", true, {"ab1", "2", " ", " ", "cd-3", "."}},
      {"Contiguous", false, {"ab", "12  ", "cd-", "3", "."}},
      {"Contiguous", true, {"ab", "12  ", "cd-", "3", "."}},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(
        *Split(SplitConfig("\\s|\\d", c.behavior, c.invert), "ab12  cd-3."),
        c.pieces)
        << c.behavior << (c.invert ? " inverted" : "");
  }
}

TEST(SplitTest, StringPatternIsLiteral) {
  nlohmann::json config = SplitConfig("", "Isolated");
  config["pattern"] = {{"String", "."}};
  EXPECT_THAT(*Split(config, "a.b"), ElementsAre("a", ".", "b"));
}

TEST(PreTokenizerTest, CharacterClasses) {
  EXPECT_THAT(*Split({{"type", "Punctuation"}}, "a,b--c!¿d"),
              ElementsAre("a", ",", "b", "-", "-", "c", "!", "¿", "d"));
  EXPECT_THAT(*Split({{"type", "Whitespace"}}, "a_1, ñ2  ++\tz"),
              ElementsAre("a_1", ",", "ñ2", "++", "z"));
  EXPECT_THAT(*Split({{"type", "WhitespaceSplit"}}, "a_1,\u3000ñ2  ++\tz"),
              ElementsAre("a_1,", "ñ2", "++", "z"));
  EXPECT_THAT(
      *Split({{"type", "Digits"}, {"individual_digits", false}}, "a12½b3"),
      ElementsAre("a", "12½", "b", "3"));
  EXPECT_THAT(
      *Split({{"type", "Digits"}, {"individual_digits", true}}, "a12½b3"),
      ElementsAre("a", "1", "2", "½", "b", "3"));
}

TEST(PreTokenizerTest, ByteLevelWithPrefixSpaceAndRegex) {
  EXPECT_THAT(*Split({{"type", "ByteLevel"}, {"add_prefix_space", true}},
                     "I'm 42\n é  x"),
              ElementsAre("ĠI", "'m", "Ġ42", "Ċ", "ĠÃ©", "Ġ", "Ġx"));
}

TEST(PreTokenizerTest, MetaspaceSchemes) {
  const auto metaspace = [](const char* scheme, bool split) {
    return nlohmann::json{{"type", "Metaspace"},
                          {"replacement", "▁"},
                          {"prepend_scheme", scheme},
                          {"split", split}};
  };
  EXPECT_THAT(*Split(metaspace("always", true), "a  b ▁c"),
              ElementsAre("▁a", "▁", "▁b", "▁", "▁c"));
  EXPECT_THAT(*Split(metaspace("first", false), "a  b ▁c"),
              ElementsAre("▁a▁▁b▁▁c"));
  EXPECT_THAT(*Split(metaspace("never", true), "a  b"),
              ElementsAre("a", "▁", "▁b"));
}

TEST(PreTokenizerTest, MetaspaceFirstLeavesLaterPiecesAlone) {
  const nlohmann::json first = {{"type", "Metaspace"},
                                {"replacement", "▁"},
                                {"prepend_scheme", "first"},
                                {"split", false}};
  const nlohmann::json sequence = {
      {"type", "Sequence"},
      {"pretokenizers", {SplitConfig("-", "Removed"), first}}};
  EXPECT_THAT(*Split(sequence, "a-b"), ElementsAre("▁a", "b"));
  EXPECT_THAT(*Split(sequence, "-b"), ElementsAre("b"));
}

TEST(PreTokenizerTest, RefusesWhatItDoesNotKnow) {
  EXPECT_THAT(Split({{"type", "UnicodeScripts"}}, "a").status().message(),
              HasSubstr("pre_tokenizer: type UnicodeScripts"));
  nlohmann::json config = SplitConfig("a", "Isolated");
  config["behavior"] = "Doubled";
  EXPECT_THAT(Split(config, "a").status().message(), HasSubstr("Doubled"));
  config = SplitConfig("a", "Isolated");
  config["limit"] = 3;
  EXPECT_THAT(Split(config, "a").status().message(), HasSubstr("limit"));
}

}  // namespace
}  // namespace expertmesh::text
