#include "router_service/transport/address_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

TEST(ParseAddressFile, TakesAnAddressALine) {
  EXPECT_THAT(*ParseAddressFile("# hot\n10.0.0.1:5\n\n  [::1]:6\t\r\nh:7"),
              ElementsAre("10.0.0.1:5", "[::1]:6", "h:7"));
}

TEST(ParseAddressFile, NoneMustBeSaid) {
  EXPECT_THAT(*ParseAddressFile("none\n"), IsEmpty());
  EXPECT_THAT(*ParseAddressFile("# none left\nnone"), IsEmpty());
  EXPECT_THAT(*ParseAddressFile("none\nh:7\n"), ElementsAre("h:7"));
  for (const char* text : {"", "\n \n", "# none"}) {
    EXPECT_TRUE(absl::IsNotFound(ParseAddressFile(text).status())) << text;
  }
}

TEST(ParseAddressFile, OneBadLineIsAFaultOfAll) {
  const struct {
    const char* text;
    const char* message;
  } cases[] = {{"h:1\n\nh", "line 3: address 'h'"},
               {"h:0", "line 1: expert service h:0 needs a port"},
               {"h:1,h:2", "line 1: "},
               {"::1:5", "line 1: "},
               {"h:1 # hot", "line 1: "}};
  for (const auto& c : cases) {
    const auto addresses = ParseAddressFile(c.text);
    EXPECT_TRUE(absl::IsInvalidArgument(addresses.status())) << c.text;
    EXPECT_THAT(std::string(addresses.status().message()),
                StartsWith(c.message));
  }
}

TEST(ReadAddressFile, NamesTheFile) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/address_file");
  std::filesystem::create_directory(folder);
  const std::string path = absl::StrCat(folder, "/hot");
  const auto write = [&](const std::string& text) {
    std::ofstream(path) << text;
  };
  write("h:1\nh:2\n");
  EXPECT_THAT(*ReadAddressFile(path), ElementsAre("h:1", "h:2"));
  write("h\n");
  EXPECT_THAT(std::string(ReadAddressFile(path).status().message()),
              StartsWith(absl::StrCat(path, ": line 1: ")));
  write("");
  EXPECT_TRUE(absl::IsNotFound(ReadAddressFile(path).status()));
  write(std::string((1 << 20) + 1, '\n'));
  EXPECT_THAT(std::string(ReadAddressFile(path).status().message()),
              HasSubstr("larger than a MiB"));
  for (const std::string& bad : {folder, path + ".absent"}) {
    const absl::Status status = ReadAddressFile(bad).status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                StartsWith(absl::StrCat(bad, ": cannot read it: ")));
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace expertmesh::router
