#include "expert_service/execution/call_reduction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/expert_service/execution/executor_fixture.h"

namespace expertmesh::expert {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Rows of experts 1 and 4, the second row to sum 1 and the others as told.
class SummedWork final : public ExpertWork {
 public:
  SummedWork(std::vector<uint32_t> sums, int64_t count)
      : sums_(std::move(sums)), weights_(sums_.size()) {
    num_rows = static_cast<int64_t>(sums_.size());
    num_sums = count;
    for (size_t i = 0; i < sums_.size(); ++i) {
      weights_[i] = static_cast<float>(i) + 0.5f;
      num_lone_rows += sums_[i] == kNoSum;
    }
    if (count == 0) return;
    row_sum = sums_;
    row_weight = weights_;
  }
  void CopyRows(int64_t, int64_t, std::byte*) const override {}
  void Finish(const absl::Status&, WorkOutput, const WorkTiming&) override {}

 private:
  std::vector<uint32_t> sums_;
  std::vector<float> weights_;
};

TEST(CallReductionTest, SumsHaveTheirRowsInTheOrderOfTheCall) {
  SummedWork a({1, 0, kNoSum, 1}, 2);
  SummedWork none({kNoSum, kNoSum}, 0);
  SummedWork b({0, 0}, 1);
  ExpertWork* const works[] = {&a, nullptr, &none, &b};
  // Expert 1: two rows of a, one of none, one of b; expert 4 the rest.
  const RowRange ranges[] = {{1, 0, 0, 2}, {1, 2, 0, 1}, {1, 3, 0, 1},
                             {4, 0, 2, 4}, {4, 2, 1, 2}, {4, 3, 1, 2}};
  CallReduction reduction;
  for (int turn = 0; turn < 2; ++turn) {  // what is reused is cleared
    reduction.Build(works, ranges);
    const RowReduction view = reduction.view();
    EXPECT_THAT(view.sum_offsets, ElementsAre(0, 1, 3, 5));
    EXPECT_THAT(view.sum_rows, ElementsAre(1, 0, 5, 3, 7));
    EXPECT_THAT(view.sum_weights, ElementsAre(1.5f, 0.5f, 3.5f, 0.5f, 1.5f));
    EXPECT_THAT(view.lone_rows, ElementsAre(4, 2, 6));
    EXPECT_EQ(view.num_outputs(), 6u);
    ASSERT_EQ(reduction.places().size(), 3u);
    EXPECT_EQ(reduction.places()[1].work, 2u);
    EXPECT_EQ(reduction.places()[1].first_lone, 1u);
    EXPECT_EQ(reduction.places()[2].work, 3u);
    EXPECT_EQ(reduction.places()[2].first_lone, 3u);
    EXPECT_EQ(reduction.places()[2].first_sum, 2u);
  }
  reduction.Build({}, {});
  EXPECT_EQ(reduction.view().num_outputs(), 0u);
  EXPECT_THAT(reduction.places(), IsEmpty());
}

}  // namespace
}  // namespace expertmesh::expert
