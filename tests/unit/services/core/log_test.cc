#include "services/core/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/fake_clock.h"

namespace expertmesh {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

class LogTest : public ::testing::Test {
 protected:
  ~LogTest() override {
    ConfigureLog("expertmesh", LogLevel::kInfo, LogFormat::kText);
  }
  // What `write` puts on standard error.
  template <typename Write>
  static std::string Written(Write write) {
    ::testing::internal::CaptureStderr();
    write();
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, ControlBytesInAValueAreEscaped) {
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    ConfigureLog("test", LogLevel::kInfo, format);
    const std::string line = Written([] {
      Log(LogLevel::kInfo, "hello", {{"id", "x\r\x1b[31mFORGED\x7f"}});
    });
    EXPECT_THAT(line, HasSubstr("\"x\\u000d\\u001b[31mFORGED\\u007f\""));
    EXPECT_THAT(line, Not(HasSubstr("\x1b")));
  }
}

TEST_F(LogTest, PlainValuesAreNotQuotedInText) {
  ConfigureLog("test", LogLevel::kInfo, LogFormat::kText);
  EXPECT_THAT(Written([] {
                Log(LogLevel::kInfo, "a\rb",
                    {{"id", "ümlaut"}, {"empty", ""}, {"n", 3}});
              }),
              EndsWith(" info test: a b id=ümlaut empty=\"\" n=3\n"));
}

TEST(LogRateLimitTest, LetsABurstThroughThenRefills) {
  FakeClock clock;
  LogRateLimit limit({.per_second = 100, .burst = 100}, &clock);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(limit.Allow(), 0) << i;
  for (int i = 0; i < 7; ++i) EXPECT_EQ(limit.Allow(), std::nullopt);
  clock.Advance(absl::Milliseconds(25));
  EXPECT_EQ(limit.Allow(), 7);
  EXPECT_EQ(limit.Allow(), 0);
  EXPECT_EQ(limit.Allow(), std::nullopt);
  clock.Advance(absl::Hours(1));
  EXPECT_EQ(limit.Allow(), 1);
  for (int i = 0; i < 99; ++i) EXPECT_EQ(limit.Allow(), 0) << i;
  EXPECT_EQ(limit.Allow(), std::nullopt);
}

TEST_F(LogTest, TheNextLineSaysHowManyWereSuppressed) {
  ConfigureLog("test", LogLevel::kInfo, LogFormat::kText);
  FakeClock clock;
  LogRateLimit limit({}, &clock);
  const auto log = [&limit] { Log(limit, LogLevel::kInfo, "m", {{"a", 1}}); };
  EXPECT_THAT(Written(log), EndsWith("m a=1\n"));
  EXPECT_EQ(Written(log), "");
  EXPECT_EQ(Written(log), "");
  clock.Advance(absl::Seconds(1));
  EXPECT_THAT(Written(log), EndsWith("m a=1 suppressed=2\n"));
}

TEST_F(LogTest, LinesBelowTheLevelUseUpNothing) {
  ConfigureLog("test", LogLevel::kInfo, LogFormat::kText);
  FakeClock clock;
  LogRateLimit limit({}, &clock);
  EXPECT_EQ(Written([&] { Log(limit, LogLevel::kDebug, "m"); }), "");
  EXPECT_EQ(limit.Allow(), 0);
}

}  // namespace
}  // namespace expertmesh
