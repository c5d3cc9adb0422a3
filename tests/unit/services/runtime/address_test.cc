#include "services/runtime/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace expertmesh {
namespace {

using ::testing::HasSubstr;

TEST(ParseHostPort, SplitsNamesAndAddresses) {
  const auto name = ParseHostPort("experts.mesh.local:50051");
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_EQ(name->host, "experts.mesh.local");
  EXPECT_EQ(name->port, 50051);

  const auto ipv6 = ParseHostPort("[::1]:0");
  ASSERT_TRUE(ipv6.ok()) << ipv6.status();
  EXPECT_EQ(ipv6->host, "::1");
  EXPECT_EQ(ipv6->port, 0);
}

TEST(ParseHostPort, PrintsAsItParses) {
  for (const std::string text : {"127.0.0.1:80", "[fe80::1]:65535", "a:0"}) {
    const auto address = ParseHostPort(text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->ToString(), text);
  }
}

TEST(ParseHostPort, SaysWhatIsWrong) {
  const struct {
    std::string text, reason;
  } kCases[] = {
      {"localhost", "the port is missing"},
      {"::1:80", "needs brackets"},
      {":80", "the host is missing"},
      {"[]:80", "the host is missing"},
      {"http://a:80", "needs brackets"},
      {"a/b:80", "no host name has"},
      {"a:", "no number from 0 to 65535"},
      {"a:-1", "no number from 0 to 65535"},
      {"a:65536", "no number from 0 to 65535"},
      {"a:99999999999999999999", "no number from 0 to 65535"},
      {"a:http", "no number from 0 to 65535"},
      {"", "the port is missing"},
  };
  for (const auto& c : kCases) {
    const auto address = ParseHostPort(c.text);
    ASSERT_FALSE(address.ok()) << c.text;
    EXPECT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(address.status().message()), HasSubstr(c.reason));
    EXPECT_THAT(std::string(address.status().message()),
                HasSubstr("'" + c.text + "'"));
  }
}

TEST(ResolveListenAddress, TurnsNamesIntoAddresses) {
  const auto address = ResolveListenAddress("localhost:7");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_TRUE(address->host == "127.0.0.1" || address->host == "::1")
      << address->host;
  EXPECT_EQ(address->port, 7);
}

}  // namespace
}  // namespace expertmesh
