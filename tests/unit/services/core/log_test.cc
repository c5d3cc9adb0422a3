#include "services/core/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

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

TEST_F(LogTest, EveryJsonLineIsJson) {
  ConfigureLog("test", LogLevel::kInfo, LogFormat::kJson);
  std::string all_bytes;
  for (int byte = 0; byte < 256; ++byte) {
    all_bytes.push_back(static_cast<char>(byte));
  }
  const std::string odd[] = {"",
                             "\"quoted\" \\ back",
                             "two\nlines\r\n",
                             all_bytes,
                             std::string(3, '\0'),
                             "\xc3",              // cut short
                             "\xc0\xaf",          // longer than need be
                             "\xed\xa0\x80",      // a surrogate
                             "\xf4\x90\x80\x80",  // beyond Unicode
                             "\xe2\x82\xac \xf0\x9f\x98\x80 ümlaut",
                             std::string(100'000, 'a'),
                             std::string(100'000, '\n'),  // six bytes each
                             std::string(3000, '\xff')};
  for (const std::string& text : odd) {
    const std::string line = Written([&] {
      Log(LogLevel::kWarning, text, {{"id", text}, {"error", text}});
    });
    ASSERT_THAT(line, EndsWith("}\n"));
    EXPECT_LE(line.size(), 4096u);
    EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
    const auto json = nlohmann::json::parse(line, nullptr, false);
    ASSERT_FALSE(json.is_discarded()) << line;
    EXPECT_EQ(json["level"], "warning");
    if (text.size() < 30 &&
        nlohmann::json(text).dump(-1, ' ', false,
                                  nlohmann::json::error_handler_t::ignore) ==
            nlohmann::json(text).dump(
                -1, ' ', false, nlohmann::json::error_handler_t::replace)) {
      EXPECT_EQ(json["id"], text);
    }
  }
}

TEST_F(LogTest, BytesThatAreNotUtf8AreReplaced) {
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    ConfigureLog("test", LogLevel::kInfo, format);
    EXPECT_THAT(Written([] {
                  Log(LogLevel::kInfo, "m", {{"id", "a\xff\xc3(z"}});
                }),
                HasSubstr("a\xef\xbf\xbd\xef\xbf\xbd(z"));
  }
}

TEST_F(LogTest, LongValuesAreCutAndShortOnesStay) {
  ConfigureLog("test", LogLevel::kInfo, LogFormat::kJson);
  const std::string line = Written([] {
    Log(LogLevel::kInfo, "m",
        {{"long", std::string(9000, 'x')}, {"trace_id", "0af7651916cd43dd"}});
  });
  EXPECT_THAT(line, HasSubstr("x\xe2\x80\xa6\""));
  EXPECT_THAT(line, HasSubstr("\"trace_id\":\"0af7651916cd43dd\""));
}

TEST_F(LogTest, NumbersKeepEveryDigit) {
  ConfigureLog("test", LogLevel::kInfo, LogFormat::kJson);
  EXPECT_THAT(Written([] {
                Log(LogLevel::kInfo, "m",
                    {{"most", UINT64_MAX},
                     {"least", INT64_MIN},
                     {"yes", true},
                     {"nan", std::nan("")}});
              }),
              EndsWith("\"most\":18446744073709551615,"
                       "\"least\":-9223372036854775808,"
                       "\"yes\":true,\"nan\":null}\n"));
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
