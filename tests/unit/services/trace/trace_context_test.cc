#include "services/trace/trace_context.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

// The standard's own example.
constexpr char kExample[] =
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(TraceContextTest, ReadsAndWritesTheExample) {
  const auto context = ParseTraceparent(kExample);
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_id.Hex(), "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(context->span_id.Hex(), "00f067aa0ba902b7");
  EXPECT_TRUE(context->is_sampled);
  EXPECT_EQ(context->ToTraceparent(), kExample);
}

TEST(TraceContextTest, OnlyTheLowestFlagSaysSampled) {
  const std::string start(kExample, 53);
  for (const auto& [flags, sampled] :
       {std::pair("00", false), {"01", true}, {"02", false}, {"ff", true}}) {
    const auto context = ParseTraceparent(start + flags);
    ASSERT_TRUE(context.has_value()) << flags;
    EXPECT_EQ(context->is_sampled, sampled) << flags;
  }
}

TEST(TraceContextTest, WhatIsMalformedIsIgnored) {
  const std::string good = kExample;
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(ParseTraceparent(good.substr(0, size))) << size;
  }
  // Every character by itself.
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char c : {'g', 'A', ' ', '\0', '_', '\xff'}) {
      std::string bad = good;
      bad[i] = c;
      EXPECT_FALSE(ParseTraceparent(bad)) << bad;
    }
  }
  for (const std::string& bad :
       {good + "-00", good + "x", " " + good, "ff" + good.substr(2),
        absl::StrCat("00-", std::string(32, '0'), good.substr(35)),
        absl::StrCat(good.substr(0, 36), std::string(16, '0'), "-01")}) {
    EXPECT_FALSE(ParseTraceparent(bad)) << bad;
  }
}

TEST(TraceContextTest, LaterVersionsAreReadAsThisOne) {
  const std::string later = "cc" + std::string(kExample).substr(2);
  EXPECT_TRUE(ParseTraceparent(later));
  EXPECT_TRUE(ParseTraceparent(later + "-what-comes-then"));
  EXPECT_FALSE(ParseTraceparent(later + ".what-comes-then"));
  EXPECT_EQ(ParseTraceparent(later)->ToTraceparent(), kExample);
}

TEST(TraceContextTest, RandomIdsDiffer) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(seen.insert(TraceId::Random().Hex()).second);
    EXPECT_TRUE(seen.insert(SpanId::Random().Hex()).second);
  }
}

}  // namespace
}  // namespace expertmesh
