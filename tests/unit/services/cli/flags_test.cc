#include "services/cli/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace expertmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ParseTokenIds, ReadsLists) {
  EXPECT_THAT(*ParseTokenIds("1,2,3"), ElementsAre(1, 2, 3));
  EXPECT_THAT(*ParseTokenIds(" [1, 2] "), ElementsAre(1, 2));
  EXPECT_THAT(*ParseTokenIds("4294967295"), ElementsAre(4294967295u));
  EXPECT_THAT(*ParseTokenIds(""), IsEmpty());
  EXPECT_THAT(*ParseTokenIds("[]"), IsEmpty());
}

TEST(ParseTokenIds, NamesWhatIsNoId) {
  for (const char* text :
       {"1,x", "1,,2", "-1", "+1", "1.5", "4294967296", "1,2,", "[1"}) {
    EXPECT_EQ(ParseTokenIds(text).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
  EXPECT_THAT(ParseTokenIds("1,x").status().message(), HasSubstr("\"x\""));
}

TEST(CheckUtf8, NamesTheFirstBadByte) {
  EXPECT_TRUE(CheckUtf8("naïve 😀").ok());
  EXPECT_THAT(CheckUtf8("ab\xC3").message(), HasSubstr("offset 2"));
  EXPECT_THAT(CheckUtf8("\xED\xA0\x80").message(), HasSubstr("offset 0"));
}

// CLI11's own name the range of a double, 309 digits of it.
TEST(IsWholeNumber, TakesDigitsWithinItsRange) {
  const CLI::Validator check = IsWholeNumber(1, 8);
  for (const std::string text : {"1", "8"}) EXPECT_EQ(check(text), "");
  for (const std::string text :
       {"0", "9", "-1", "+1", "", "x", "1.5", "1x", "18446744073709551617"}) {
    EXPECT_EQ(check(text),
              "\"" + text + "\" is not a whole number from 1 to 8");
  }
  const uint64_t greatest = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(IsWholeNumber(0, greatest)("18446744073709551615"), "");
  EXPECT_NE(IsWholeNumber(0, greatest)("18446744073709551616"), "");
}

TEST(IsNumber, TakesFiniteNumbers) {
  for (const std::string text : {"1", "0.5", "1e3"}) {
    EXPECT_EQ(IsPositive()(text), "");
    EXPECT_EQ(IsNonNegative()(text), "");
  }
  EXPECT_EQ(IsNonNegative()(std::string("0")), "");
  EXPECT_EQ(IsPositive()(std::string("0")), "\"0\" is not a number above 0");
  EXPECT_EQ(IsNonNegative()(std::string("-1")),
            "\"-1\" is not a number of at least 0");
  for (const std::string text : {"x", "", "nan", "inf", "1e400", "1s"}) {
    EXPECT_NE(IsPositive()(text), "") << text;
    EXPECT_NE(IsNonNegative()(text), "") << text;
  }
}

TEST(ReadFile, SaysWhyItCannot) {
  EXPECT_THAT(ReadFile("/no/such/file").status().message(),
              HasSubstr("No such file"));
  // A folder opens but does not read.
  EXPECT_FALSE(ReadFile("/tmp").ok());
}

TEST(ParsePoolSizeTest, TakesANameAndANumber) {
  const auto size = ParsePoolSize("hot-1=3");
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_EQ(size->pool, "hot-1");
  EXPECT_EQ(size->services, 3u);
  EXPECT_EQ(ParsePoolSize("hot=0")->services, 0u);
  for (const char* text : {"", "hot", "hot=", "=3", "hot=x", "hot=-1", "hot=+1",
                           "hot=1.5", "hot==1", "hot=4294967296"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParsePoolSize(text).status())) << text;
  }
}

}  // namespace
}  // namespace expertmesh
