#include "services/trace/trace_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

using ::testing::HasSubstr;

class TraceFileTest : public ::testing::Test {
 protected:
  TraceFileTest()
      : path_(absl::StrCat(::testing::TempDir(), "/spans-", getpid())) {
    unlink(path_.c_str());
  }
  ~TraceFileTest() override { unlink(path_.c_str()); }

  TraceFile::Options Options() {
    TraceFile::Options options;
    options.path = path_;
    options.service_name = "test";
    options.on_dropped = [this](int64_t spans) { dropped_ += spans; };
    return options;
  }
  static Span NamedSpan(const std::string& name) {
    Span span;
    span.trace_id = TraceId::Random();
    span.span_id = SpanId::Random();
    span.name = name;
    return span;
  }
  // Names of the spans of all lines.
  std::vector<std::string> Names() {
    std::vector<std::string> names;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      const auto json = nlohmann::json::parse(line);
      for (const auto& span :
           json["resourceSpans"][0]["scopeSpans"][0]["spans"]) {
        names.push_back(span["name"]);
      }
    }
    return names;
  }

  const std::string path_;
  std::atomic<int64_t> dropped_{0};
};

TEST_F(TraceFileTest, SpansOfSeveralThreadsAreAllWritten) {
  constexpr int kThreads = 4, kSpans = 500;
  {
    auto file = TraceFile::Open(Options());
    ASSERT_TRUE(file.ok());
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&file] {
        for (int n = 0; n < kSpans; ++n) (*file)->Add(NamedSpan("s"));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(dropped_, 0);
  EXPECT_EQ(Names().size(), kThreads * kSpans);
}

TEST_F(TraceFileTest, ARestartAppends) {
  for (const char* name : {"first", "second"}) {
    const auto file = TraceFile::Open(Options());
    ASSERT_TRUE(file.ok());
    (*file)->Add(NamedSpan(name));
  }
  EXPECT_THAT(Names(), ::testing::ElementsAre("first", "second"));
}

TEST_F(TraceFileTest, SpansThatNobodyTakesAreCounted) {
  // A pipe that is not read is full soon, and the queue then.
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  FILE* const reader = fopen(path_.c_str(), "r+");
  ASSERT_NE(reader, nullptr);
  TraceFile::Options options = Options();
  options.max_queued = 10;
  constexpr int kSpans = 5000;
  std::thread drain;
  {
    auto file = TraceFile::Open(options);
    ASSERT_TRUE(file.ok());
    for (int n = 0; n < kSpans; ++n) (*file)->Add(NamedSpan("s"));
    EXPECT_GT(dropped_, 0);
    EXPECT_LT(dropped_, kSpans);
    drain = std::thread([&] {
      char buffer[4096];
      while (fgets(buffer, sizeof(buffer), reader) != nullptr) {
        if (absl::string_view(buffer) == "end\n") return;
      }
    });
  }
  std::ofstream(path_) << "end\n";
  drain.join();
  fclose(reader);
}

TEST_F(TraceFileTest, AFullDiskDropsAndCounts) {
  TraceFile::Options options = Options();
  options.path = "/dev/full";
  {
    auto file = TraceFile::Open(options);
    ASSERT_TRUE(file.ok());
    (*file)->Add(NamedSpan("s"));
  }
  EXPECT_EQ(dropped_, 1);
}

TEST_F(TraceFileTest, APipeThatNobodyEmptiesHoldsUpNoEnd) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const int reader = open(path_.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  TraceFile::Options options = Options();
  options.max_queued = 10000;
  {
    auto file = TraceFile::Open(options);
    ASSERT_TRUE(file.ok());
    for (int n = 0; n < 5000; ++n) (*file)->Add(NamedSpan("s"));
  }
  EXPECT_GT(dropped_, 0);
  close(reader);
}

TEST_F(TraceFileTest, ALineAfterATornOneIsWhole) {
  signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  {
    const auto file = TraceFile::Open(Options());
    ASSERT_TRUE(file.ok());
    // As a disk that has room for the begin of the line.
    rlimit small = before;
    small.rlim_cur = 100;
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    (*file)->Add(NamedSpan("torn"));
    while (dropped_ == 0) std::this_thread::yield();
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    (*file)->Add(NamedSpan("whole"));
  }
  std::ifstream in(path_);
  std::string torn, whole, none;
  ASSERT_TRUE(std::getline(in, torn) && std::getline(in, whole));
  EXPECT_EQ(torn.size(), 100u);
  EXPECT_TRUE(nlohmann::json::accept(whole)) << whole;
  EXPECT_THAT(whole, HasSubstr("whole"));
  EXPECT_FALSE(std::getline(in, none));
}

TEST_F(TraceFileTest, APipeWithoutAReaderIsRefused) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const auto file = TraceFile::Open(Options());
  EXPECT_TRUE(absl::IsInvalidArgument(file.status())) << file.status();
}

TEST_F(TraceFileTest, AFileThatCannotBeIsNamed) {
  TraceFile::Options options = Options();
  options.path = "/nowhere/at/all";
  const auto file = TraceFile::Open(options);
  EXPECT_TRUE(absl::IsInvalidArgument(file.status()));
  EXPECT_THAT(file.status().message(), HasSubstr("/nowhere/at/all"));
}

}  // namespace
}  // namespace expertmesh
