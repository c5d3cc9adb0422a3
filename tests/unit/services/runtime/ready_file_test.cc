#include "services/runtime/ready_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace expertmesh {
namespace {

TEST(WriteReadyFile, ReplacesTheFileAndLeavesNothingElse) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "ready_file_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const std::string path = (folder / "ready.json").string();
  ASSERT_TRUE(WriteReadyFile(path, "{\"old\": 1, \"long\": true}").ok());
  ASSERT_TRUE(WriteReadyFile(path, "{}").ok());

  std::ifstream file(path);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "{}\n");
  std::filesystem::directory_iterator files(folder);
  EXPECT_EQ(std::distance(begin(files), end(files)), 1);
}

TEST(WriteReadyFile, NamesThePathItCannotWrite) {
  const absl::Status status = WriteReadyFile("/nowhere/ready.json", "{}");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "cannot write ready file /nowhere/ready.json: "
            "No such file or directory");
}

}  // namespace
}  // namespace expertmesh
