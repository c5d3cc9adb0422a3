#include "router_service/engine/kv/prefix_index.h"

#include <gtest/gtest.h>

#include <numeric>

namespace expertmesh::router {
namespace {

constexpr int32_t kRoot = PrefixIndex::kRoot;
constexpr int32_t kNone = PrefixIndex::kNone;

std::vector<int32_t> Tokens(int32_t first) {
  std::vector<int32_t> tokens(kPageTokens);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST(PrefixIndexTest, FindsAPageByItsParentAndAllItsTokens) {
  PrefixIndex index(4);
  index.Insert(kRoot, Tokens(1), 2);
  index.Insert(2, Tokens(1), 0);
  EXPECT_EQ(index.Find(kRoot, Tokens(1)), 2);
  EXPECT_EQ(index.Find(2, Tokens(1)), 0);
  EXPECT_EQ(index.Find(0, Tokens(1)), kNone);
  std::vector<int32_t> other = Tokens(1);
  other.back() += 1;
  EXPECT_EQ(index.Find(kRoot, other), kNone);
}

// Many more pages than buckets could hold one by one: pages of one bucket are
// told apart, and leave it without harm to the others.
TEST(PrefixIndexTest, SurvivesCollisions) {
  constexpr int32_t kPages = 3000;
  PrefixIndex index(kPages);
  for (int32_t page = 0; page < kPages; ++page) {
    index.Insert(kRoot, Tokens(page), page);
    if (page % 3 == 0) index.SetUnused(page);
  }
  for (int32_t page = 0; page < kPages; page += 3) {
    EXPECT_EQ(index.Evict(), page);
  }
  EXPECT_EQ(index.Evict(), kNone);
  for (int32_t page = 0; page < kPages; ++page) {
    EXPECT_EQ(index.Find(kRoot, Tokens(page)), page % 3 == 0 ? kNone : page);
  }
}

TEST(PrefixIndexTest, EvictsWhatHasBeenUnusedForLongest) {
  PrefixIndex index(3);
  for (int32_t page = 0; page < 3; ++page) {
    index.Insert(kRoot, Tokens(page), page);
    index.SetUnused(page);
  }
  index.SetUsed(0);
  index.SetUnused(0);
  index.SetUsed(2);
  EXPECT_EQ(index.num_unused(), 2);
  EXPECT_EQ(index.Evict(), 1);
  EXPECT_EQ(index.Evict(), 0);
  EXPECT_EQ(index.Evict(), kNone);
  EXPECT_EQ(index.num_known(), 1);
  EXPECT_TRUE(index.Knows(2));
}

TEST(PrefixIndexTest, ClearForgetsPagesInUse) {
  PrefixIndex index(2);
  index.Insert(kRoot, Tokens(1), 0);
  index.Clear();
  EXPECT_FALSE(index.Knows(0));
  EXPECT_EQ(index.Find(kRoot, Tokens(1)), kNone);
  EXPECT_EQ(index.num_known(), 0);
}

}  // namespace
}  // namespace expertmesh::router
