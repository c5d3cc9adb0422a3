#include "services/cli/start_progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/fake_clock.h"

namespace expertmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class StartProgressTest : public ::testing::Test {
 protected:
  StartProgress Make(bool is_terminal) {
    StartProgress::Options options;
    if (is_terminal) {
      options.show = [this](absl::string_view line) {
        shown_.emplace_back(line);
      };
    }
    options.print = [this](absl::string_view line) {
      printed_.emplace_back(line);
    };
    options.clock = &clock_;
    return StartProgress(std::move(options));
  }

  FakeClock clock_;
  std::vector<std::string> shown_, printed_;
};

TEST_F(StartProgressTest, ATerminalShowsAllServicesAsOneLine) {
  StartProgress progress = Make(true);
  progress.Begin("starting 2 expert services");
  progress.OnLoad(1, {.loaded = 100, .total = 400});
  progress.OnLoad(2, {.loaded = 0, .total = 100});
  progress.OnLoad(1, {.loaded = 300, .total = 400});
  progress.Begin("starting the router");
  progress.OnLoad(3, {.loaded = 1, .total = 2});
  progress.End();
  EXPECT_THAT(
      shown_,
      ElementsAre("starting 2 expert services",
                  "starting 2 expert services: 25 % of the weights loaded",
                  "starting 2 expert services: 20 % of the weights loaded",
                  "starting 2 expert services: 60 % of the weights loaded",
                  "starting the router",
                  "starting the router: 50 % of the weights loaded", ""));
  EXPECT_THAT(printed_, IsEmpty());
}

TEST_F(StartProgressTest, ElsewhereALineIsPrintedNowAndThen) {
  StartProgress progress = Make(false);
  progress.Begin("starting 2 expert services");
  EXPECT_THAT(printed_, IsEmpty());
  progress.OnLoad(1, {.loaded = 1, .total = 100});
  progress.OnLoad(2, {.loaded = 1, .total = 100});
  clock_.Advance(StartProgress::kInterval);
  progress.OnLoad(2, {.loaded = 79, .total = 100});
  EXPECT_THAT(
      printed_,
      ElementsAre(
          "expertmesh: starting 2 expert services: 1 % of the weights loaded",
          "expertmesh: starting 2 expert services: 40 % of the weights "
          "loaded"));
}

TEST_F(StartProgressTest, ServicesThatStartAgainLaterAreNotShown) {
  StartProgress progress = Make(false);
  progress.Begin("starting the router");
  progress.End();
  progress.OnLoad(3, {.loaded = 1, .total = 2});
  EXPECT_THAT(printed_, IsEmpty());
}

}  // namespace
}  // namespace expertmesh
