#include "services/runtime/shutdown_signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>

namespace expertmesh {
namespace {

// Each body runs in a process of its own: signals are process-wide.
class ShutdownSignalsDeathTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(ShutdownSignalsDeathTest, WaitReturnsTheSignal) {
  EXPECT_EXIT(
      {
        ShutdownSignals signals;
        if (signals.Wait(absl::ZeroDuration()).has_value()) std::_Exit(1);
        kill(getpid(), SIGTERM);
        const bool first = signals.Wait() == SIGTERM;
        const bool again = signals.Wait(absl::ZeroDuration()) == SIGTERM;
        std::_Exit(first && again ? 0 : 2);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(ShutdownSignalsDeathTest, ASecondSignalEndsTheProcess) {
  EXPECT_EXIT(
      {
        ShutdownSignals signals;
        signals.Wait(absl::ZeroDuration());
        kill(getpid(), SIGTERM);
        signals.Wait();
        kill(getpid(), SIGINT);
        pause();
      },
      testing::ExitedWithCode(128 + SIGINT), "");
}

TEST_F(ShutdownSignalsDeathTest, ASignalAfterARequestLetsTheDrainGoOn) {
  EXPECT_EXIT(
      {
        ShutdownSignals signals;
        signals.Request();
        const bool first = signals.Wait() == SIGTERM;
        kill(getpid(), SIGTERM);
        signals.Request();
        const bool again = signals.Wait(absl::ZeroDuration()) == SIGTERM;
        std::_Exit(first && again ? 0 : 2);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(ShutdownSignalsDeathTest, BeforeTheFirstWaitASignalEndsTheProcess) {
  EXPECT_EXIT(
      {
        ShutdownSignals signals;
        kill(getpid(), SIGINT);
        pause();
      },
      testing::ExitedWithCode(128 + SIGINT), "");
}

TEST_F(ShutdownSignalsDeathTest, ABrokenPipeIsAnErrorCode) {
  EXPECT_EXIT(
      {
        ShutdownSignals signals;
        int ends[2];
        if (pipe(ends) != 0) std::_Exit(1);
        close(ends[0]);
        const ssize_t written = write(ends[1], "x", 1);
        std::_Exit(written == -1 && errno == EPIPE ? 0 : 2);
      },
      testing::ExitedWithCode(0), "");
}

TEST(ShutdownSignals, EndsItsThread) { ShutdownSignals signals; }

}  // namespace
}  // namespace expertmesh
