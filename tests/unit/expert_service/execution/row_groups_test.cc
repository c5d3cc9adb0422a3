#include "expert_service/execution/row_groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/wire/payload_pool.h"

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class ShapeOnly final : public ExpertWork {
 public:
  ShapeOnly(std::vector<uint32_t> experts, std::vector<uint32_t> offsets)
      : experts_(std::move(experts)), offsets_(std::move(offsets)) {
    expert_ids = experts_;
    group_offsets = offsets_;
    num_rows = offsets_.back();
  }
  void CopyRows(int64_t, int64_t, std::byte*) const override {}
  void Finish(const absl::Status&, WorkOutput, const WorkTiming&) override {}

 private:
  std::vector<uint32_t> experts_, offsets_;
};

// "e3 w0[0,2)" for every range.
std::vector<std::string> Ranges(const RowChunk& chunk) {
  std::vector<std::string> ranges;
  for (const RowRange& r : chunk.ranges) {
    ranges.push_back(absl::StrCat("e", r.expert, " w", r.work, "[", r.first,
                                  ",", r.last, ")"));
  }
  return ranges;
}

TEST(RowGroups, GroupsByExpertOverBatches) {
  ShapeOnly a({1, 4}, {0, 2, 5});
  ShapeOnly b({0, 1, 2, 4}, {0, 1, 3, 3, 4});
  RowGroups groups;
  RowChunk chunk;
  groups.Reset({&a, nullptr, &b});
  ASSERT_TRUE(groups.NextChunk(100, &chunk));
  EXPECT_THAT(Ranges(chunk),
              ElementsAre("e0 w2[0,1)", "e1 w0[0,2)", "e1 w2[1,3)",
                          "e4 w0[2,5)", "e4 w2[3,4)"));
  EXPECT_THAT(chunk.experts, ElementsAre(0, 1, 4));
  EXPECT_THAT(chunk.offsets, ElementsAre(0, 1, 5, 9));
  EXPECT_FALSE(groups.NextChunk(100, &chunk));
}

TEST(RowGroups, SplitsWhatDoesNotFit) {
  ShapeOnly a({1, 4}, {0, 2, 9});
  RowGroups groups;
  RowChunk chunk;
  groups.Reset({&a});
  ASSERT_TRUE(groups.NextChunk(3, &chunk));
  EXPECT_THAT(Ranges(chunk), ElementsAre("e1 w0[0,2)", "e4 w0[2,3)"));
  ASSERT_TRUE(groups.NextChunk(3, &chunk));
  EXPECT_THAT(Ranges(chunk), ElementsAre("e4 w0[3,6)"));
  ASSERT_TRUE(groups.NextChunk(3, &chunk));
  EXPECT_THAT(Ranges(chunk), ElementsAre("e4 w0[6,9)"));
  EXPECT_THAT(chunk.offsets, ElementsAre(0, 3));
  EXPECT_FALSE(groups.NextChunk(3, &chunk));
}

TEST(RowGroups, BatchesWithoutRowsGiveNothing) {
  ShapeOnly a({}, {0});
  ShapeOnly b({3}, {0, 0});
  RowGroups groups;
  RowChunk chunk;
  groups.Reset({&a, &b});
  EXPECT_FALSE(groups.NextChunk(3, &chunk));
  EXPECT_THAT(chunk.ranges, IsEmpty());
}

}  // namespace
}  // namespace expertmesh::expert
