#include "services/cli/process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

namespace expertmesh {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Shell(const std::string& script) {
  return {"/bin/sh", "-c", script};
}

// Reads until the child closes its standard error.
std::vector<std::string> AllLines(Process& process) {
  std::vector<std::string> lines;
  while (process.stderr_fd() >= 0) {
    pollfd fd = {process.stderr_fd(), POLLIN, 0};
    poll(&fd, 1, -1);
    process.ReadLines(
        [&](absl::string_view line) { lines.emplace_back(line); });
  }
  return lines;
}

ProcessExit Wait(Process& process) {
  while (true) {
    if (const auto exit = process.Poll()) return *exit;
    usleep(1000);
  }
}

TEST(Process, ReturnsLinesAndExitCode) {
  auto process = Process::Start(Shell("echo one >&2; printf two >&2; exit 7"));
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_THAT(AllLines(*process), ElementsAre("one", "two"));
  const ProcessExit exit = Wait(*process);
  EXPECT_EQ(exit.code, 7);
  EXPECT_EQ(exit.ToString(), "exited with code 7");
  EXPECT_FALSE(process->running());
}

TEST(Process, TellsASignalFromAnExit) {
  auto process = Process::Start(Shell("kill -KILL $$"));
  ASSERT_TRUE(process.ok());
  EXPECT_EQ(Wait(*process).signal, SIGKILL);
}

TEST(Process, HasAGroupOfItsOwnAndNoInput) {
  // `read` fails at once where there is no input.
  auto process = Process::Start(Shell("read line || echo none >&2"));
  ASSERT_TRUE(process.ok());
  EXPECT_EQ(getpgid(process->pid()), process->pid());
  EXPECT_THAT(AllLines(*process), ElementsAre("none"));
}

TEST(Process, StartsWithoutBlockedSignals) {
  sigset_t term, old;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, &old);
  auto process = Process::Start(Shell("while :; do sleep 1; done"));
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  ASSERT_TRUE(process.ok());
  process->Signal(SIGTERM);
  EXPECT_EQ(Wait(*process).signal, SIGTERM);
}

// The kernel reaps children of a process that ignores SIGCHLD, as a parent may
// have left it.
TEST(Process, EndsWhereChildrenAreReapedByTheKernel) {
  const auto old = signal(SIGCHLD, SIG_IGN);
  auto process = Process::Start(Shell("exit 3"));
  ASSERT_TRUE(process.ok());
  for (int i = 0; i < 10000 && !process->Poll(); ++i) usleep(1000);
  signal(SIGCHLD, old);
  ASSERT_TRUE(process->Poll().has_value());
  EXPECT_EQ(process->Poll()->ToString(), "ended");
}

TEST(Process, LeavesNothingBehind) {
  pid_t pid;
  {
    auto process = Process::Start(Shell("exec sleep 1000"));
    ASSERT_TRUE(process.ok());
    pid = process->pid();
  }
  EXPECT_EQ(kill(pid, 0), -1);  // neither running nor a zombie
  EXPECT_EQ(errno, ESRCH);
}

TEST(Process, NamesAProgramThatIsNotThere) {
  const auto process = Process::Start({"/no/such/program"});
  ASSERT_FALSE(process.ok());
  EXPECT_THAT(std::string(process.status().message()),
              testing::HasSubstr("/no/such/program"));
}

}  // namespace
}  // namespace expertmesh
