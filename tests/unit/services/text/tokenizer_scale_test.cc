// Inputs on which a quadratic step would take hours: the test's time limit is
// the assertion. Nothing is measured.

#include <gtest/gtest.h>

#include <random>

#include "services/text/tokenizer.h"
#include "tests/support/sanitized.h"
#include "tests/unit/services/text/tokenizer_test_util.h"

namespace expertmesh {
namespace {

constexpr size_t kBytes = size_t{1} << (kSanitized ? 16 : 20);

std::string Repeat(absl::string_view unit) {
  std::string text;
  while (text.size() < kBytes) text.append(unit.data(), unit.size());
  return text;
}

std::string RandomLetters() {
  std::mt19937 random(1);
  std::string text;
  while (text.size() < kBytes) text.push_back('a' + random() % 26);
  return text;
}

class TokenizerScaleTest : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerScaleTest, RoundTripsAMegabyte) {
  const auto tokenizer = LoadGolden(GetParam());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  // All begin with a letter: SentencePiece's decoder strips a leading space.
  const std::string texts[] = {
      Repeat("a"),
      RandomLetters(),
      absl::StrCat("x", Repeat(" ")),
      absl::StrCat("x", Repeat(" "), "x"),
      absl::StrCat("x", Repeat("\n")),
      absl::StrCat("x", Repeat(" \n")),
      absl::StrCat("x", Repeat("😀")),
      absl::StrCat("x", Repeat("7")),
      absl::StrCat("x", Repeat("!")),
      absl::StrCat("x", Repeat("A")),
      absl::StrCat("x", Repeat("<|")),
  };
  for (const std::string& text : texts) {
    SCOPED_TRACE(text.substr(0, 8));
    const auto ids = (*tokenizer)->Encode(text, /*add_special_tokens=*/true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_TRUE((*tokenizer)->Decode(*ids, /*skip_special=*/true) == text);
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, TokenizerScaleTest,
                         testing::Values("qwen", "gpt2", "o200k", "deepseek_v3",
                                         "llama_spm"),
                         [](const auto& info) { return info.param; });

TEST(TokenizerScale, SortsAMegabyteOfMarks) {
  const auto tokenizer = LoadGolden("qwen");  // normalizes to NFC
  ASSERT_TRUE(tokenizer.ok());
  const auto ids =
      (*tokenizer)->Encode(absl::StrCat("q", Repeat("\u0301\u0316")), true);
  ASSERT_TRUE(ids.ok());
  const std::string sorted = (*tokenizer)->Decode(*ids, true);
  EXPECT_EQ(sorted.substr(0, 5), "q\u0316\u0316");
  EXPECT_EQ(sorted.substr(sorted.size() - 4), "\u0301\u0301");
}

TEST(TokenizerScale, StreamsAMillionTokens) {
  for (const char* name : {"qwen", "llama_spm"}) {
    const auto tokenizer = LoadGolden(name);
    ASSERT_TRUE(tokenizer.ok());
    const auto ids = (*tokenizer)->Encode(Repeat("a😀"), true);
    ASSERT_TRUE(ids.ok());
    StreamingDetokenizer stream(tokenizer->get(), /*skip_special=*/true);
    std::string text;
    for (int32_t id : *ids) text += stream.Push(id);
    text += stream.Flush();
    EXPECT_TRUE(text == Repeat("a😀")) << name;
  }
}

}  // namespace
}  // namespace expertmesh
