#include "services/weights_transfer/crc32c.h"

#include <gtest/gtest.h>

#include <string>

namespace expertmesh {
namespace {

// RFC 3720, appendix B.4.
TEST(Crc32cTest, PublishedValues) {
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending.push_back(c);
  EXPECT_EQ(Crc32c(ascending), 0x46dd794eu);
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);  // eight and one more
}

TEST(Crc32cTest, EveryBitCounts) {
  const std::string text(37, 'x');
  for (size_t i = 0; i < 8 * text.size(); ++i) {
    std::string other = text;
    other[i / 8] = static_cast<char>(other[i / 8] ^ (1 << i % 8));
    EXPECT_NE(Crc32c(other), Crc32c(text));
  }
}

}  // namespace
}  // namespace expertmesh
