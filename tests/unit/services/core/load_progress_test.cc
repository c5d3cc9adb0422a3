#include "services/core/load_progress.h"

#include <gtest/gtest.h>

#include "tests/support/fake_clock.h"

namespace expertmesh {
namespace {

TEST(LoadProgressTest, SaysNothingOfAShortLoad) {
  FakeClock clock;
  LoadProgress progress(100, &clock);
  for (int i = 0; i < 19; ++i) {
    EXPECT_FALSE(progress.Add(5).has_value());
    clock.Advance(absl::Milliseconds(100));
  }
  EXPECT_FALSE(progress.Add(5).has_value());
}

TEST(LoadProgressTest, TellsShareAndTimeLeftNowAndThen) {
  FakeClock clock;
  LoadProgress progress(1000, &clock);
  EXPECT_FALSE(progress.Add(150).has_value());
  clock.Advance(LoadProgress::kQuiet);
  const auto first = progress.Add(50);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->percent, 20);
  EXPECT_EQ(first->loaded_bytes, 200);
  EXPECT_EQ(first->total_bytes, 1000);
  EXPECT_NEAR(absl::ToDoubleSeconds(first->left), 8.0, 1e-6);
  clock.Advance(LoadProgress::kInterval - absl::Milliseconds(1));
  EXPECT_FALSE(progress.Add(300).has_value());
  clock.Advance(absl::Milliseconds(1));
  const auto second = progress.Add(0);
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->percent, 50);
  EXPECT_NEAR(absl::ToDoubleSeconds(second->left), 5.0, 1e-6);
}

TEST(LoadProgressTest, TellsTheEndOnceWhereItHasToldAnything) {
  FakeClock clock;
  LoadProgress told(10, &clock);
  clock.Advance(LoadProgress::kQuiet);
  ASSERT_TRUE(told.Add(5).has_value());
  const auto end = told.Add(5);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->percent, 100);
  EXPECT_EQ(end->left, absl::ZeroDuration());
  EXPECT_FALSE(told.Add(0).has_value());
  LoadProgress progress(10, &clock);
  clock.Advance(absl::Seconds(100));
  EXPECT_FALSE(progress.Add(10).has_value());
  LoadProgress nothing(0, &clock);
  clock.Advance(absl::Seconds(100));
  EXPECT_FALSE(nothing.Add(0).has_value());
}

TEST(LoadProgressTest, LinesForALauncherComeBackAsBytes) {
  const LoadProgress::Report report = {.percent = 25,
                                       .loaded_bytes = 10'000'000'000,
                                       .total_bytes = 40'000'000'000,
                                       .left = {}};
  EXPECT_EQ(ProgressLine(report), "progress: 10000000000 of 40000000000 bytes");
  const auto bytes = ParseProgressLine(ProgressLine(report));
  ASSERT_TRUE(bytes.has_value());
  EXPECT_EQ(bytes->loaded, report.loaded_bytes);
  EXPECT_EQ(bytes->total, report.total_bytes);
  for (const char* line : {"", "progress: x of 4 bytes", "progress: 1 of 4",
                           "expert: progress: 1 of 4 bytes"}) {
    EXPECT_FALSE(ParseProgressLine(line).has_value()) << line;
  }
}

TEST(LoadProgressTest, LinesAreWrittenWhereALauncherAsks) {
  WriteProgressLines();
  ::testing::internal::CaptureStderr();
  LogProgress("packing",
              {.percent = 25, .loaded_bytes = 1, .total_bytes = 4, .left = {}});
  EXPECT_NE(::testing::internal::GetCapturedStderr().find(
                "\nprogress: 1 of 4 bytes\n"),
            std::string::npos);
}

}  // namespace
}  // namespace expertmesh
