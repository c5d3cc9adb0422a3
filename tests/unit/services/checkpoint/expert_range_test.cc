#include "services/checkpoint/expert_range.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace expertmesh {
namespace {

using ::testing::ElementsAre;

TEST(ExpertRangeTest, FormatsRangesAndIds) {
  EXPECT_EQ(FormatExpertList({0, 1, 2, 3, 7}), "0-3,7");
  EXPECT_EQ(FormatExpertList({0, 2, 4, 5}), "0,2,4-5");
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
