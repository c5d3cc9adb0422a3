#include "services/cli/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

TEST(ReadFile, SaysWhyItCannot) {
  EXPECT_THAT(ReadFile("/no/such/file").status().message(),
              HasSubstr("No such file"));
  // A folder opens but does not read.
  EXPECT_FALSE(ReadFile("/tmp").ok());
}

}  // namespace
}  // namespace expertmesh
