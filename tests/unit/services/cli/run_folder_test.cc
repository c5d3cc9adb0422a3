#include "services/cli/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

class RunFolderTest : public testing::Test {
 protected:
  RunFolderTest() {
    std::filesystem::create_directories(base_);
    setenv("TMPDIR", base_.c_str(), 1);
  }
  ~RunFolderTest() override {
    unsetenv("TMPDIR");
    std::filesystem::remove_all(base_);
  }

  const std::string base_ =
      absl::StrCat(testing::TempDir(), "run_folder_test.", getpid());
};

TEST_F(RunFolderTest, IsRemovedWithItsFiles) {
  std::string path;
  {
    const auto folder = RunFolder::Create();
    ASSERT_TRUE(folder.ok()) << folder.status();
    path = folder->path();
    EXPECT_TRUE(absl::StartsWith(path, base_));
    std::ofstream(path + "/0.json") << "{}";
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(RunFolderTest, RemovesThoseOfTheDeadAndKeepsThoseOfTheLiving) {
  // A process that has a folder and ends without cleaning up.
  const pid_t child = fork();
  if (child == 0) {
    const auto folder = RunFolder::Create();
    std::ofstream(folder->path() + "/0.json") << "{}";
    _exit(0);
  }
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  ASSERT_FALSE(std::filesystem::is_empty(base_));
  EXPECT_THAT(RunFolder::Living(), testing::IsEmpty());
  const std::string dead =
      std::filesystem::directory_iterator(base_)->path().string();
  std::filesystem::create_directory(base_ + "/of-someone-else");

  const auto first = RunFolder::Create();
  EXPECT_FALSE(std::filesystem::exists(dead));
  const auto second = RunFolder::Create();
  EXPECT_TRUE(std::filesystem::exists(first->path()));
  EXPECT_TRUE(std::filesystem::exists(second->path()));
  EXPECT_THAT(RunFolder::Living(),
              testing::UnorderedElementsAre(first->path(), second->path()));
  EXPECT_TRUE(std::filesystem::exists(base_ + "/of-someone-else"));
}

}  // namespace
}  // namespace expertmesh
