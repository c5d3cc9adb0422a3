#include "router_service/transport/in_flight_table.h"

#include <gtest/gtest.h>

#include <set>

namespace expertmesh::router {
namespace {

TEST(InFlightTable, ABatchIsTakenOnce) {
  InFlightTable table;
  const uint64_t a = table.Add({.num_rows = 3})->batch.sequence_number;
  const uint64_t b = table.Add({.num_rows = 4})->batch.sequence_number;
  EXPECT_NE(a, b);
  EXPECT_EQ(table.rows(), 7u);
  InFlightBatch taken;
  ASSERT_TRUE(table.Take(a, &taken));
  EXPECT_EQ(taken.num_rows, 3u);
  EXPECT_FALSE(table.Take(a, &taken));
  EXPECT_EQ(table.rows(), 4u);
  EXPECT_NE(table.Find(b), nullptr);
}

TEST(InFlightTable, NumbersAreNeverUsedAgain) {
  InFlightTable table;
  std::set<uint64_t> seen;
  for (int i = 0; i < 100; ++i) {
    const uint64_t number = table.Add({})->batch.sequence_number;
    EXPECT_TRUE(seen.insert(number).second);
    InFlightBatch batch;
    ASSERT_TRUE(table.Take(number, &batch));
    EXPECT_TRUE(table.WasIssued(number));
  }
  EXPECT_FALSE(table.WasIssued(0));
  EXPECT_FALSE(table.WasIssued(*seen.rbegin() + (uint64_t{1} << 24)));
  EXPECT_FALSE(table.WasIssued(*seen.rbegin() + 1));  // no such entry
  EXPECT_EQ(table.Find(0), nullptr);
  EXPECT_EQ(table.Find(~uint64_t{0}), nullptr);
}

TEST(InFlightTable, TakesWhatIsExpired) {
  InFlightTable table;
  for (const int seconds : {5, 3, 9}) {
    table.Add({.num_rows = 1, .deadline = absl::Seconds(seconds)});
  }
  table.Add({.num_rows = 1});
  std::vector<InFlightBatch> batches;
  EXPECT_EQ(table.TakeExpired(absl::Seconds(2), &batches), absl::Seconds(3));
  EXPECT_TRUE(batches.empty());
  EXPECT_EQ(table.TakeExpired(absl::Seconds(5), &batches), absl::Seconds(9));
  EXPECT_EQ(batches.size(), 2u);
  EXPECT_EQ(table.TakeExpired(absl::Seconds(9), &batches),
            absl::InfiniteDuration());
  EXPECT_EQ(table.rows(), 1u);
  table.TakeAll(&batches);
  EXPECT_EQ(batches.size(), 4u);
  EXPECT_EQ(table.rows(), 0u);
}

}  // namespace
}  // namespace expertmesh::router
