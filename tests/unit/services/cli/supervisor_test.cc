#include "services/cli/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "services/cli/flags.h"

namespace expertmesh {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A service that announces `grpc` and then runs `then`. Ended before that, it
// leaves no command behind that still writes.
ServiceSpec Service(const std::string& name, const std::string& grpc,
                    const std::string& then = "sleep 1000") {
  return {name, "", [=](const std::string& ready_file, const ReadyInfo* last) {
            return std::vector<std::string>{
                "/bin/sh", "-c",
                absl::StrCat("trap exit TERM; printf '{\"grpc\":\"",
                             last ? last->grpc + "-again" : grpc, "\"}' > ",
                             ready_file, ".tmp; mv ", ready_file, ".tmp ",
                             ready_file, "; exec ", then)};
          }};
}

// Keeps the temporary files of a test in a folder that can be looked at.
class SupervisorTest : public testing::Test {
 protected:
  SupervisorTest() {
    setenv("TMPDIR", folder_.c_str(), 1);
    std::filesystem::create_directories(folder_);
    Supervisor::Options options;
    options.first_backoff = absl::Milliseconds(1);
    options.stop_timeout = absl::Seconds(5);
    options.print_line = [this](absl::string_view line) {
      lines_.emplace_back(line);
    };
    options.on_load = [this](pid_t service, LoadedBytes bytes) {
      EXPECT_GT(service, 0);
      loads_.push_back(absl::StrCat(bytes.loaded, "/", bytes.total));
    };
    supervisor_ = *Supervisor::Create(std::move(options));
  }
  ~SupervisorTest() override {
    supervisor_.reset();
    EXPECT_TRUE(std::filesystem::is_empty(folder_));
    std::filesystem::remove_all(folder_);
    unsetenv("TMPDIR");
  }

  const std::string folder_ =
      absl::StrCat(testing::TempDir(), "supervisor_test.", getpid());
  std::vector<std::string> lines_, loads_;
  std::unique_ptr<Supervisor> supervisor_;
};

TEST_F(SupervisorTest, StartsSideBySideAndKnowsTheAddresses) {
  ASSERT_TRUE(
      supervisor_->Start({Service("a", "h:1"), Service("b", "h:2")}).ok());
  ASSERT_TRUE(supervisor_->Start({Service("c", "h:3")}).ok());
  ASSERT_EQ(supervisor_->services().size(), 3u);
  EXPECT_EQ(supervisor_->services()[1].info->grpc, "h:2");
  EXPECT_EQ(supervisor_->services()[2].info->grpc, "h:3");
  EXPECT_EQ(kill(supervisor_->services()[0].pid, 0), 0);
}

TEST_F(SupervisorTest, AFailedStartIsOneError) {
  const ServiceSpec bad = {
      "the bad one", "", [](const std::string&, const ReadyInfo*) {
        return std::vector<std::string>{
            "/bin/sh", "-c", "echo log line >&2; echo no model >&2; exit 1"};
      }};
  const absl::Status status = supervisor_->Start({Service("good", "h:1"), bad});
  EXPECT_EQ(status.message(), "the bad one did not start: no model");
  EXPECT_THAT(lines_, IsEmpty());
}

TEST_F(SupervisorTest, LinesOfProgressAreNoLinesOfText) {
  const ServiceSpec bad = {
      "the bad one", "", [](const std::string&, const ReadyInfo*) {
        return std::vector<std::string>{
            "/bin/sh", "-c",
            "echo no model >&2; echo progress: 3 of 4 bytes >&2; exit 1"};
      }};
  const absl::Status status = supervisor_->Start({bad});
  EXPECT_EQ(status.message(), "the bad one did not start: no model");
  EXPECT_THAT(loads_, ElementsAre("3/4"));
}

TEST_F(SupervisorTest, ASignalEndsTheStart) {
  const ServiceSpec slow = {
      "slow", "", [](const std::string&, const ReadyInfo*) {
        return std::vector<std::string>{"/bin/sleep", "1000"};
      }};
  kill(getpid(), SIGTERM);  // blocked, so read from the descriptor
  EXPECT_TRUE(absl::IsCancelled(supervisor_->Start({slow})));
}

TEST_F(SupervisorTest, HearsOfItsChildrenWhereSigchldWasIgnored) {
  supervisor_.reset();
  signal(SIGCHLD, SIG_IGN);  // as a parent may have left it
  supervisor_ = *Supervisor::Create({});
  const ServiceSpec bad = {
      "bad", "", [](const std::string&, const ReadyInfo*) {
        return std::vector<std::string>{"/bin/sh", "-c", "exit 3"};
      }};
  EXPECT_EQ(supervisor_->Start({bad}).message(),
            "bad did not start: exited with code 3");
}

TEST_F(SupervisorTest, RestartsWhatDies) {
  ASSERT_TRUE(supervisor_->Start({Service("a", "h:1")}).ok());
  const pid_t first = supervisor_->services()[0].pid;
  kill(first, SIGKILL);
  supervisor_->Watch([&] {
    if (supervisor_->services()[0].pid != first) kill(getpid(), SIGTERM);
  });
  // It was told what it had announced before.
  EXPECT_EQ(supervisor_->services()[0].info->grpc, "h:1-again");
  EXPECT_THAT(lines_, Contains(HasSubstr("was killed by signal 9")));
  EXPECT_THAT(lines_, Contains(HasSubstr("a is back")));
}

// A service that ends at once, with a line.
ServiceSpec Broken(const std::string& name) {
  return {name, "", [](const std::string&, const ReadyInfo*) {
            return std::vector<std::string>{"/bin/sh", "-c",
                                            "echo no room >&2; exit 1"};
          }};
}

// A service that cannot even be spawned.
ServiceSpec Missing(const std::string& name) {
  return {name, "", [](const std::string&, const ReadyInfo*) {
            return std::vector<std::string>{"/no/such/binary"};
          }};
}

TEST_F(SupervisorTest, ServicesComeAndGoWhileItWatches) {
  ASSERT_TRUE(supervisor_->Start({Service("a", "h:1")}).ok());
  ASSERT_TRUE(supervisor_->Start({Service("router", "h:0")}).ok());
  std::vector<std::vector<std::string>> seen;  // names, at each change
  absl::Status added, failed, missing, removed, late;
  std::thread other([&] {
    added = supervisor_->Add({Service("b", "h:2"), Service("c", "h:3")});
    failed = supervisor_->Add({Service("d", "h:4"), Broken("e")});
    missing = supervisor_->Add({Service("d", "h:4"), Missing("e")});
    removed = supervisor_->Remove({"a", "c"});
    kill(getpid(), SIGTERM);
    while (!supervisor_->SleepUnlessStopping(absl::Minutes(1))) {
    }
    late = supervisor_->Add({Service("f", "h:5")});
  });
  supervisor_->Watch([&] {
    seen.emplace_back();
    for (const ServiceStatus& service : supervisor_->services()) {
      if (service.info) seen.back().push_back(service.name);
    }
  });
  other.join();
  EXPECT_TRUE(added.ok()) << added;
  EXPECT_EQ(failed.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(failed.message(), "e did not start: no room");
  EXPECT_EQ(missing.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(missing.message()),
              HasSubstr("e did not start: cannot start /no/such/binary"));
  EXPECT_TRUE(removed.ok()) << removed;
  EXPECT_TRUE(absl::IsCancelled(late)) << late;
  EXPECT_THAT(seen, Contains(ElementsAre("a", "router", "b", "c")));
  EXPECT_THAT(seen.back(), ElementsAre("router", "b"));
  EXPECT_EQ(supervisor_->services()[1].info->grpc, "h:2");
}

TEST_F(SupervisorTest, AnAddedServiceIsRestartedToo) {
  ASSERT_TRUE(supervisor_->Start({Service("a", "h:1")}).ok());
  pid_t first = 0;
  std::thread other([&] {
    EXPECT_TRUE(supervisor_->Add({Service("b", "h:2")}).ok());
    first = supervisor_->services()[1].pid;
    kill(first, SIGKILL);
  });
  supervisor_->Watch([&] {
    const auto services = supervisor_->services();
    if (services.size() == 2 && services[1].info &&
        services[1].info->grpc == "h:2-again") {
      kill(getpid(), SIGTERM);
    }
  });
  other.join();
  EXPECT_NE(supervisor_->services()[1].pid, first);
}

TEST_F(SupervisorTest, WhatDoesNotEndIsKilled) {
  Supervisor::Options options;
  options.stop_timeout = absl::Milliseconds(1);
  options.print_line = [this](absl::string_view line) {
    lines_.emplace_back(line);
  };
  supervisor_.reset();  // first: its end lets signals through again
  supervisor_ = *Supervisor::Create(std::move(options));
  ASSERT_TRUE(supervisor_->Start({Service("a", "h:1")}).ok());
  // Ready only once the signal is ignored.
  const ServiceSpec deaf = {
      "deaf", "", [](const std::string& ready_file, const ReadyInfo*) {
        return std::vector<std::string>{
            "/bin/sh", "-c",
            absl::StrCat("trap '' TERM; printf '{\"grpc\":\"h:1\"}' > ",
                         ready_file, "; while :; do sleep 0.01; done")};
      }};
  ASSERT_TRUE(supervisor_->Start({deaf}).ok());
  std::thread other([&] {
    EXPECT_TRUE(supervisor_->Remove({"deaf"}).ok());
    kill(getpid(), SIGTERM);
  });
  supervisor_->Watch([] {});
  other.join();
  EXPECT_THAT(lines_, Contains(HasSubstr("deaf (pid ")));
  EXPECT_THAT(lines_, Contains(HasSubstr("was killed by signal 9")));
}

TEST_F(SupervisorTest, StopsTheLastStartedFirst) {
  const std::string log = absl::StrCat(testing::TempDir(), "order.", getpid());
  // Ready only once the trap is set.
  const auto logging = [&](const std::string& name) -> ServiceSpec {
    return {name, "", [=](const std::string& ready_file, const ReadyInfo*) {
              return std::vector<std::string>{
                  "/bin/sh", "-c",
                  absl::StrCat("trap 'echo ", name, " >> ", log,
                               "; exit' TERM; printf '{\"grpc\":\"h:1\"}' > ",
                               ready_file, "; while :; do sleep 0.01; done")};
            }};
  };
  ASSERT_TRUE(supervisor_->Start({logging("expert")}).ok());
  ASSERT_TRUE(supervisor_->Start({logging("router")}).ok());
  supervisor_->Stop();
  EXPECT_EQ(ReadFile(log).value_or(""), "router\nexpert\n");
  std::filesystem::remove(log);
}

}  // namespace
}  // namespace expertmesh
