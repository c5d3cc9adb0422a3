#include "services/checkpoint/expert_range.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ExpertRangeTest, ParsesIdsAndRanges) {
  EXPECT_THAT(*ParseExpertList("0-3,7", 8), ElementsAre(0, 1, 2, 3, 7));
  EXPECT_THAT(*ParseExpertList("7, 2 - 3", 8), ElementsAre(2, 3, 7));
  EXPECT_THAT(*ParseExpertList("5-5", 8), ElementsAre(5));
}

TEST(ExpertRangeTest, RefusesTheRest) {
  for (const char* text :
       {"", ",", "1,", "a", "-1", "1-", "3-1", "0-8", "8", "1,1", "0-3,2",
        "1-2-3", "+1", "0x1", "1.0", "99999999999999999999"}) {
    const auto experts = ParseExpertList(text, 8);
    ASSERT_FALSE(experts.ok()) << text;
    EXPECT_EQ(experts.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(experts.status().message()),
                HasSubstr("expert list '" + std::string(text) + "'"));
  }
  EXPECT_THAT(std::string(ParseExpertList("0-8", 8).status().message()),
              HasSubstr("there is no expert 8 (the model has 8)"));
}

TEST(ExpertRangeTest, FormatsWhatItParses) {
  for (const char* text : {"0-3,7", "2", "0,2,4-5"}) {
    EXPECT_EQ(FormatExpertList(*ParseExpertList(text, 8)), text);
  }
  EXPECT_EQ(FormatExpertList({}), "");
}

TEST(ExpertRangeTest, SplitsIntoContiguousRanges) {
  const auto ranges = SplitExperts(10, 4);
  ASSERT_TRUE(ranges.ok());
  std::vector<int64_t> sizes;
  int64_t next = 0;
  for (const ExpertRange& range : *ranges) {
    EXPECT_EQ(range.first, next);
    next = range.end;
    sizes.push_back(range.size());
  }
  EXPECT_EQ(next, 10);
  EXPECT_THAT(sizes, ElementsAre(3, 3, 2, 2));
  EXPECT_EQ(SplitExperts(8, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SplitExperts(8, 9).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace expertmesh
