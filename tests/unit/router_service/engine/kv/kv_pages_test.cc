#include "router_service/engine/kv/kv_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Pages = std::vector<int32_t>;

std::vector<int32_t> Prompt(int64_t size, int32_t seed = 0) {
  std::vector<int32_t> tokens(size);
  for (int64_t i = 0; i < size; ++i) tokens[i] = seed + static_cast<int32_t>(i);
  return tokens;
}

// As a sequence does whose tokens are all computed.
void ShareAll(const std::vector<int32_t>& tokens, KvPages* kv, Pages* pages) {
  for (int64_t i = 0;
       (i + 1) * kPageTokens <= static_cast<int64_t>(tokens.size()); ++i) {
    kv->Share(absl::MakeConstSpan(tokens).subspan(i * kPageTokens, kPageTokens),
              i, pages);
  }
}

Pages Compute(const std::vector<int32_t>& tokens, KvPages* kv) {
  Pages pages;
  const int64_t found = kv->TakePrefix(tokens, &pages);
  EXPECT_TRUE(kv->Allocate(
      PagesFor(static_cast<int64_t>(tokens.size())) - found / kPageTokens,
      &pages));
  ShareAll(tokens, kv, &pages);
  return pages;
}

TEST(KvPagesTest, APrefixIsFoundInUseAndAfterwards) {
  KvPages kv(8, /*keeps_prefixes=*/true);
  Pages first = Compute(Prompt(40), &kv);
  EXPECT_THAT(first, ElementsAre(0, 1, 2));
  Pages second;
  EXPECT_EQ(kv.TakePrefix(Prompt(60), &second), 32);
  EXPECT_THAT(second, ElementsAre(0, 1));
  kv.Release(&first);
  kv.Release(&second);
  EXPECT_THAT(second, IsEmpty());
  EXPECT_EQ(kv.num_available(), 8);
  EXPECT_EQ(kv.num_kept(), 2);
  EXPECT_EQ(kv.TakePrefix(Prompt(31), &second), 16);
  EXPECT_EQ(kv.num_available(), 7);
}

TEST(KvPagesTest, WhatIsBelowOneRootIsNotFoundBelowTheOther) {
  KvPages kv(8, /*keeps_prefixes=*/true);
  Pages first = Compute(Prompt(32), &kv);
  Pages second;
  EXPECT_EQ(kv.TakePrefix(Prompt(32), &second, PrefixIndex::kMixedRoot), 0);
  ASSERT_TRUE(kv.Allocate(2, &second));
  for (int64_t page = 0; page < 2; ++page) {
    kv.Share(Prompt(16, static_cast<int32_t>(16 * page)), page, &second,
             PrefixIndex::kMixedRoot);
  }
  EXPECT_THAT(second, ElementsAre(2, 3));
  Pages third;
  EXPECT_EQ(kv.TakePrefix(Prompt(32), &third, PrefixIndex::kMixedRoot), 32);
  EXPECT_THAT(third, ElementsAre(2, 3));
  Pages fourth;
  EXPECT_EQ(kv.TakePrefix(Prompt(32), &fourth), 32);
  EXPECT_THAT(fourth, ElementsAre(0, 1));
}

TEST(KvPagesTest, NothingIsSharedBeforeItIsComputed) {
  KvPages kv(8, true);
  Pages first;
  ASSERT_TRUE(kv.Allocate(2, &first));
  Pages second;
  EXPECT_EQ(kv.TakePrefix(Prompt(32), &second), 0);
}

TEST(KvPagesTest, WithoutPrefixesNothingIsKept) {
  KvPages kv(4, /*keeps_prefixes=*/false);
  Pages first = Compute(Prompt(40), &kv);
  Pages second;
  EXPECT_EQ(kv.TakePrefix(Prompt(40), &second), 0);
  kv.Release(&first);
  EXPECT_EQ(kv.num_kept(), 0);
  EXPECT_EQ(kv.num_available(), 4);
}

TEST(KvPagesTest, EvictsTheEndsOfPrefixesFirst) {
  KvPages kv(4, true);
  Pages pages = Compute(Prompt(64), &kv);
  kv.Release(&pages);
  Pages others;
  ASSERT_TRUE(kv.Allocate(1, &others));
  EXPECT_EQ(kv.counts().evicted_pages, 1);
  EXPECT_EQ(kv.TakePrefix(Prompt(64), &pages), 48);
  EXPECT_FALSE(kv.Allocate(1, &others)) << "pages in use are not evicted";
  EXPECT_EQ(others.size(), 1u);
}

TEST(KvPagesTest, EqualPagesComputedTwiceBecomeOne) {
  KvPages kv(8, true);
  Pages first;
  Pages second;
  ASSERT_TRUE(kv.Allocate(2, &first));
  ASSERT_TRUE(kv.Allocate(2, &second));
  ShareAll(Prompt(32), &kv, &first);
  ShareAll(Prompt(32), &kv, &second);
  EXPECT_EQ(first, second);
  EXPECT_EQ(kv.num_available(), 6);
  kv.Release(&first);
  EXPECT_EQ(kv.num_available(), 6);
  kv.Release(&second);
  EXPECT_EQ(kv.num_available(), 8);
}

TEST(KvPagesTest, ForgottenPagesAreNotFoundAndStillReturn) {
  KvPages kv(8, true);
  Pages used = Compute(Prompt(32), &kv);
  Pages unused = Compute(Prompt(32, 500), &kv);
  kv.Release(&unused);
  kv.Forget();
  EXPECT_EQ(kv.num_kept(), 0);
  Pages pages;
  EXPECT_EQ(kv.TakePrefix(Prompt(32), &pages), 0);
  EXPECT_EQ(kv.TakePrefix(Prompt(32, 500), &pages), 0);
  // Computed behind a forgotten page, so of no use to anybody.
  ASSERT_TRUE(kv.Allocate(1, &used));
  kv.Share(Prompt(16, 32), 2, &used);
  EXPECT_EQ(kv.num_kept(), 0);
  kv.Release(&used);
  EXPECT_EQ(kv.num_available(), 8);
}

// Whatever happens, a page that is found holds the tokens asked for, and no
// page is lost.
TEST(KvPagesTest, RandomUse) {
  constexpr int64_t kPages = 24;
  std::mt19937 random(1);
  KvPages kv(kPages, true);
  struct Use {
    std::vector<int32_t> tokens;
    Pages pages;
  };
  std::vector<Use> uses;
  // What was computed into each page: all tokens up to its end.
  std::vector<std::vector<int32_t>> held(kPages);
  for (int round = 0; round < 20000; ++round) {
    if (!uses.empty() && random() % 2 == 0) {
      const size_t victim = random() % uses.size();
      kv.Release(&uses[victim].pages);
      uses.erase(uses.begin() + static_cast<int64_t>(victim));
      continue;
    }
    Use use;
    // Few different blocks, so that prefixes branch and meet.
    for (size_t block = 0; block < 1 + random() % 5; ++block) {
      use.tokens.insert(use.tokens.end(), kPageTokens,
                        static_cast<int32_t>(random() % 3));
    }
    const int64_t found = kv.TakePrefix(use.tokens, &use.pages);
    for (size_t i = 0; i < use.pages.size(); ++i) {
      const auto size = static_cast<int64_t>(i + 1) * kPageTokens;
      ASSERT_EQ(
          held[use.pages[i]],
          std::vector<int32_t>(use.tokens.begin(), use.tokens.begin() + size));
    }
    const auto size = static_cast<int64_t>(use.tokens.size());
    if (!kv.Allocate(PagesFor(size) - found / kPageTokens, &use.pages)) {
      kv.Release(&use.pages);
      continue;
    }
    for (int64_t i = found / kPageTokens; i < PagesFor(size); ++i) {
      held[use.pages[i]].assign(use.tokens.begin(),
                                use.tokens.begin() + (i + 1) * kPageTokens);
    }
    ShareAll(use.tokens, &kv, &use.pages);
    uses.push_back(std::move(use));
  }
  EXPECT_GT(kv.counts().evicted_pages, 100);
  for (Use& use : uses) kv.Release(&use.pages);
  EXPECT_EQ(kv.num_available(), kPages);
}

}  // namespace
}  // namespace expertmesh::router
