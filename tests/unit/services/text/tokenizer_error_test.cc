// Files and texts that a tokenizer must refuse, and ids it must survive.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "services/text/tokenizer.h"
#include "tests/unit/services/text/tokenizer_test_util.h"

namespace expertmesh {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json MinimalFile() {
  json model = ModelOf({"a", "b", "ab"});
  model["merges"] = {"a b"};
  return {{"version", "1.0"}, {"model", model}};
}

void ExpectRefused(const std::string& contents, const char* reason) {
  const auto tokenizer = LoadText(contents);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kFailedPrecondition)
      << contents;
  EXPECT_THAT(tokenizer.status().message(), HasSubstr(reason));
  EXPECT_THAT(tokenizer.status().message(), HasSubstr("tokenizer_test_"));
  EXPECT_EQ(tokenizer.status().message().find('\n'), std::string::npos);
}

// The minimal file with `value` at the JSON pointer `place`.
void ExpectRefusedWith(const char* place, const json& value,
                       const char* reason) {
  json file = MinimalFile();
  file[json::json_pointer(place)] = value;
  SCOPED_TRACE(place);
  ExpectRefused(file.dump(), reason);
}

TEST(TokenizerErrorTest, TheMinimalFileLoads) {
  const auto tokenizer = LoadText(MinimalFile().dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("aab", true), (std::vector<int32_t>{0, 2}));
}

TEST(TokenizerErrorTest, MissingFile) {
  EXPECT_EQ(Tokenizer::Load("/nonexistent/tokenizer.json").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(TokenizerErrorTest, BrokenJson) {
  ExpectRefused("", "not JSON at byte");
  ExpectRefused("{\"model\": ", "not JSON at byte");
  ExpectRefused("{\"model\": \"\xFF\"}", "not JSON at byte");
  ExpectRefused("[]", "must be an object");
  ExpectRefused("{}", "lacks model");
}

TEST(TokenizerErrorTest, UnknownModels) {
  for (const char* type : {"WordPiece", "Unigram", "WordLevel"}) {
    ExpectRefusedWith("/model/type", type, type);
  }
}

TEST(TokenizerErrorTest, UnknownOptions) {
  ExpectRefusedWith("/version", "2.0", "version 2.0");
  ExpectRefusedWith("/shiny", 1, "shiny");
  ExpectRefusedWith("/model/dropout", 0.1, "dropout");
  ExpectRefusedWith("/model/shiny", 1, "shiny");
  ExpectRefusedWith("/model/unk_token", "<unk>", "<unk>");
  ExpectRefusedWith("/normalizer", {{"type", "Precompiled"}}, "Precompiled");
  ExpectRefusedWith("/pre_tokenizer", {{"type", "BertPreTokenizer"}},
                    "BertPreTokenizer");
  ExpectRefusedWith("/post_processor", {{"type", "BertProcessing"}},
                    "BertProcessing");
  ExpectRefusedWith("/decoder", {{"type", "WordPiece"}}, "WordPiece");
}

TEST(TokenizerErrorTest, BadVocabularies) {
  ExpectRefusedWith("/model/merges", {"a c"}, "model.merges[0]: c is not in");
  ExpectRefusedWith("/model/merges", json::array({json::array({"b", "a"})}),
                    "ba is not in");
  ExpectRefusedWith("/model/merges", {"a"}, "two tokens");
  ExpectRefusedWith("/model/merges", {3}, "two tokens");
  ExpectRefusedWith("/model/merges", nullptr, "lacks merges");
  ExpectRefusedWith("/model/vocab/a", -1, "-1 is not in");
  ExpectRefusedWith("/model/vocab/a", 1 << 30, "is not in");
  ExpectRefusedWith("/model/vocab/a", "x", "must be an integer");
  ExpectRefusedWith("/model/vocab/a", 1, "belongs to both");
}

TEST(TokenizerErrorTest, DeepNesting) {
  json steps = {{"type", "NFC"}};
  for (int i = 0; i < 100; ++i) {
    steps = {{"type", "Sequence"}, {"normalizers", {steps}}};
  }
  ExpectRefusedWith("/normalizer", steps, "nested too deep");
}

TEST(TokenizerErrorTest, AddedTokens) {
  const json token = {
      {"id", 3},         {"content", "<x>"}, {"single_word", false},
      {"lstrip", false}, {"rstrip", false},  {"normalized", false},
      {"special", true}};
  json file = MinimalFile();
  file["added_tokens"] = {token};
  EXPECT_TRUE(LoadText(file.dump()).ok());
  file["added_tokens"][0]["id"] = 7;
  ExpectRefused(file.dump(), "<x> has id 7, but 3");
  file["added_tokens"][0]["id"] = 3;
  file["added_tokens"][0]["weight"] = 1;
  ExpectRefused(file.dump(), "weight");
  file["added_tokens"][0].erase("weight");
  file["added_tokens"][0].erase("special");
  ExpectRefused(file.dump(), "lacks special");
}

TEST(TokenizerErrorTest, TemplatesMustBeComplete) {
  const json text = {{"Sequence", {{"id", "A"}}}};
  const json special = {{"SpecialToken", {{"id", "<s>"}}}};
  json processor = {{"type", "TemplateProcessing"},
                    {"single", {special, text}},
                    {"special_tokens", json::object()}};
  ExpectRefusedWith("/post_processor", processor, "lacks <s>");
  processor["single"] = {{{"Sequence", {{"id", "B"}}}}};
  ExpectRefusedWith("/post_processor", processor, "must be A");
  processor["single"] = {text};
  ExpectRefusedWith(
      "/post_processor",
      {{"type", "Sequence"}, {"processors", {processor, processor}}},
      "second TemplateProcessing");
}

TEST(TokenizerErrorTest, TextThatIsNotUtf8) {
  const auto tokenizer = LoadText(MinimalFile().dump());
  ASSERT_TRUE(tokenizer.ok());
  const auto ids = (*tokenizer)->Encode("ab\xC3(", true);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ids.status().message(), HasSubstr("byte 2"));
}

TEST(TokenizerErrorTest, IdsOutOfRangeDecodeToNothing) {
  for (const std::string& name : GoldenNames()) {
    const auto tokenizer = LoadGolden(name);
    ASSERT_TRUE(tokenizer.ok());
    constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
    constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
    const int32_t size = (*tokenizer)->vocab_size();
    EXPECT_EQ((*tokenizer)->Decode({kMin, -1, size, kMax}, false), "");
    StreamingDetokenizer stream(tokenizer->get(), false);
    for (int32_t id : {kMin, -1, size, kMax}) EXPECT_EQ(stream.Push(id), "");
    EXPECT_EQ(stream.Flush(), "");
  }
}

}  // namespace
}  // namespace expertmesh
