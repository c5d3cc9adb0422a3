#include "services/runtime/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace expertmesh {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Outcome {
  std::optional<int> exit_code;
  std::string out, err;
  std::string model;
  LogOptions log;
};

Outcome Parse(std::vector<const char*> arguments) {
  Outcome outcome;
  CLI::App app("Serves experts.");
  SetupCommandLine(app, "expertmesh-expert");
  app.add_option("--model", outcome.model)->required();
  AddLogOptions(app, &outcome.log);
  arguments.insert(arguments.begin(), "/usr/bin/expertmesh-expert");
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  outcome.exit_code = ParseCommandLine(app, static_cast<int>(arguments.size()),
                                       arguments.data());
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

TEST(ParseCommandLine, GoesOnWhenAllIsWell) {
  const Outcome outcome = Parse({"--model", "m", "--log-format=json"});
  EXPECT_EQ(outcome.exit_code, std::nullopt);
  EXPECT_EQ(outcome.model, "m");
  EXPECT_EQ(outcome.log.format, "json");
  EXPECT_EQ(outcome.out + outcome.err, "");
}

TEST(ParseCommandLine, HelpAndVersionExitWithZero) {
  const Outcome help = Parse({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("--model"));
  const Outcome version = Parse({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_EQ(version.out, "expertmesh-expert 0.1.0\n");
}

TEST(ParseCommandLine, ErrorsAreOneLineAndExitWithTwo) {
  for (const auto& arguments : std::vector<std::vector<const char*>>{
           {}, {"--model"}, {"--model", "m", "--speed=9"}, {"m"}}) {
    const Outcome outcome = Parse(arguments);
    EXPECT_EQ(outcome.exit_code, kExitUsage);
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, StartsWith("expertmesh-expert: "));
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1)
        << outcome.err;
  }
}

TEST(ApplyLogOptions, RefusesUnknownValues) {
  EXPECT_TRUE(ApplyLogOptions("expert", {"info", "text"}).ok());
  EXPECT_FALSE(ApplyLogOptions("expert", {"loud", "text"}).ok());
  EXPECT_FALSE(ApplyLogOptions("expert", {"info", "xml"}).ok());
}

TEST(FailWith, TellsUsageFromFailure) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(FailWith("x", absl::InvalidArgumentError("bad\nflag")), 2);
  EXPECT_EQ(FailWith("x", absl::UnavailableError("gone")), 1);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "x: bad flag\nx: gone\n");
}

}  // namespace
}  // namespace expertmesh
