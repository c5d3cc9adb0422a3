// Expected matches are those of Oniguruma 6.9.

#include "services/text/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace expertmesh::text {
namespace {

using testing::HasSubstr;

// `text` with its matches in brackets.
std::string Mark(const char* pattern, absl::string_view text) {
  const auto regex = Regex::CompileOniguruma(pattern);
  if (!regex.ok()) return regex.status().ToString();
  std::vector<Range> matches;
  const absl::Status status = regex->FindAll(text, &matches);
  if (!status.ok()) return status.ToString();
  std::string marked;
  size_t end = 0;
  for (const Range& match : matches) {
    absl::StrAppend(&marked, text.substr(end, match.begin - end), "[",
                    text.substr(match.begin, match.end - match.begin), "]");
    end = match.end;
  }
  return absl::StrCat(marked, text.substr(end));
}

TEST(RegexTest, OnigurumaSets) {
  EXPECT_EQ(Mark("\\w+", "aé²_ⅠⒶ-b"), "[aé²_ⅠⒶ]-[b]");
  EXPECT_EQ(Mark("\\s+", "a\u180eb\u0085\u3000c"), "a\u180eb[\u0085\u3000]c");
  EXPECT_EQ(Mark("[\\S]+", "a b"), "[a] [b]");
  EXPECT_EQ(Mark("[^\\w]", "a½-"), "a½[-]");
  EXPECT_EQ(Mark("\\bab", "ab cab"), "[ab] cab");
  EXPECT_EQ(Mark("\\h+", "xDEadg"), "x[DEad]g");
  EXPECT_EQ(Mark("\\p{Han}", "〆中、"), "〆[中]、");
  EXPECT_EQ(Mark("\\v", "a\x0b\n"), "a[\x0b]\n");
}

TEST(RegexTest, OnigurumaSyntax) {
  EXPECT_EQ(Mark("\\u0062", "abc"), "a[b]c");
  EXPECT_EQ(Mark("\\d{2}+", "123456"), "[123456]");
  EXPECT_EQ(Mark("(ab){1,2}+", "ababab"), "[ababab]");
  EXPECT_EQ(Mark("a{,2}b", "aaab b"), "a[aab] [b]");
  EXPECT_EQ(Mark("a{2", "a{2"), "[a{2]");
  EXPECT_EQ(Mark("(?m:a.)", "a\nab"), "[a\n][ab]");
  EXPECT_EQ(Mark("a.", "a\nab"), "a\n[ab]");
  EXPECT_EQ(Mark("^b", "ab\nb"), "ab\n[b]");
  EXPECT_EQ(Mark("[]x]", "a]x"), "a[]][x]");
  EXPECT_EQ(Mark("(?i:k)", "\u212A"), "[\u212A]");
  EXPECT_EQ(Mark("a++a|b", "aab"), "aa[b]");
}

TEST(RegexTest, EmptyMatches) {
  EXPECT_EQ(Mark("x*", "axxb"), "[]a[xx]b[]");
  EXPECT_EQ(Mark("x*", "é"), "[]é[]");
  EXPECT_EQ(Mark("x*", ""), "[]");
}

TEST(RegexTest, RefusesWhatWouldMeanSomethingElse) {
  for (const char* pattern :
       {"[a[bc]]", "[a-z&&[^b]]", "[[:alpha:]]", "[a\\S]", "\\xE3", "\\R",
        "\\X", "a\\Kb", "(?~a)", "(?x) a", "(?s:.)", "[a", "a)", "a\\"}) {
    const auto regex = Regex::CompileOniguruma(pattern);
    EXPECT_EQ(regex.status().code(), absl::StatusCode::kFailedPrecondition)
        << pattern;
  }
  EXPECT_THAT(Regex::CompileOniguruma("(a").status().message(),
              HasSubstr("not understood"));
  EXPECT_THAT(Regex::CompileOniguruma("\\p{Klingon}").status().message(),
              HasSubstr("Klingon"));
}

TEST(RegexTest, ReportsEndlessBacktracking) {
  const auto regex = Regex::CompileOniguruma("(a|b|ab)*[cd]");
  ASSERT_TRUE(regex.ok());
  std::string text;
  for (int i = 0; i < 200; ++i) text += "ab";
  std::vector<Range> matches;
  const absl::Status status = regex->FindAll(text, &matches);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("match limit"));
}

TEST(RegexTest, DeepBacktrackingLeavesTheSmallStack) {
  // A group repeated a hundred thousand times keeps a point for each.
  const auto regex = Regex::CompileOniguruma("(?:ab|ac)*d");
  ASSERT_TRUE(regex.ok());
  std::string text;
  for (int i = 0; i < 100000; ++i) text += i % 2 == 0 ? "ab" : "ac";
  text += "d";
  std::vector<Range> matches;
  ASSERT_TRUE(regex->FindAll(text, &matches).ok());
  ASSERT_EQ(matches.size(), 1u);
  EXPECT_EQ(matches[0].end, text.size());
}

}  // namespace
}  // namespace expertmesh::text
