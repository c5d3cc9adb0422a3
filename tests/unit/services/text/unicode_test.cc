#include "services/text/unicode.h"

#include <gtest/gtest.h>

#include <numeric>

#include "services/text/byte_alphabet.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

TEST(Utf8Test, FindsTheFirstBadByte) {
  EXPECT_EQ(FindInvalidUtf8("plain ascii, long enough for words"),
            std::string::npos);
  EXPECT_EQ(FindInvalidUtf8("é中😀\U0010FFFF"), std::string::npos);
  EXPECT_EQ(FindInvalidUtf8("abc\x80"), 3u);
  EXPECT_EQ(FindInvalidUtf8("\xC0\xAF"), 0u);             // overlong
  EXPECT_EQ(FindInvalidUtf8("ab\xED\xA0\x80"), 2u);       // surrogate
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0u);     // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("0123456789\xE4\xB8"), 10u);  // cut off
}

TEST(Utf8Test, EveryCharacterRoundTrips) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string bytes;
    AppendUtf8(c, &bytes);
    size_t size;
    ASSERT_EQ(ClassifyUtf8(bytes, &size), Utf8Front::kCharacter);
    ASSERT_EQ(size, bytes.size());
    size_t offset = 0;
    ASSERT_EQ(NextCharacter(bytes, &offset), c);
    ASSERT_EQ(PreviousBoundary(bytes, bytes.size()), 0u);
  }
}

TEST(Utf8Test, ClassifiesMaximalSubparts) {
  const auto classify = [](absl::string_view bytes) {
    size_t size;
    const Utf8Front front = ClassifyUtf8(bytes, &size);
    return std::make_pair(front, size);
  };
  EXPECT_EQ(classify("\xE4\xB8"), std::make_pair(Utf8Front::kIncomplete, 2ul));
  EXPECT_EQ(classify("\xE4\xB8z"), std::make_pair(Utf8Front::kInvalid, 2ul));
  EXPECT_EQ(classify("\xE0\x80\x80"), std::make_pair(Utf8Front::kInvalid, 1ul));
  EXPECT_EQ(classify("\xFF"), std::make_pair(Utf8Front::kInvalid, 1ul));
}

TEST(ByteAlphabetTest, IsABijection) {
  std::string bytes(256, '\0');
  std::iota(bytes.begin(), bytes.end(), '\0');
  std::string text;
  AppendByteAlphabet(bytes, &text);
  std::string back;
  for (size_t offset = 0; offset < text.size();) {
    const auto byte = ByteOfCharacter(NextCharacter(text, &offset));
    ASSERT_TRUE(byte.has_value());
    back.push_back(static_cast<char>(*byte));
  }
  EXPECT_EQ(back, bytes);
  EXPECT_FALSE(ByteOfCharacter(U' ').has_value());
  EXPECT_FALSE(ByteOfCharacter(0x144).has_value());
}

TEST(NormalizeTest, Forms) {
  const std::string text = "e\u0301 \uFB01 \u212B \uAC00";
  EXPECT_EQ(Normalize(text, NormalForm::kNfc), "é \uFB01 Å \uAC00");
  EXPECT_EQ(Normalize(text, NormalForm::kNfd),
            "e\u0301 \uFB01 A\u030A \u1100\u1161");
  EXPECT_EQ(Normalize(text, NormalForm::kNfkc), "é fi Å \uAC00");
  EXPECT_EQ(Normalize(text, NormalForm::kNfkd),
            "e\u0301 fi A\u030A \u1100\u1161");
}

TEST(NormalizeTest, OrdersMarksStably) {
  // Class 230, 220, 230: the below mark comes first, the others keep order.
  EXPECT_EQ(Normalize("q\u0301\u0316\u0302", NormalForm::kNfc),
            "q\u0316\u0301\u0302");
  EXPECT_EQ(Normalize("a\u0316\u0301", NormalForm::kNfc), "á\u0316");
}

TEST(ToLowerTest, MapsCharacters) {
  EXPECT_EQ(ToLower("ÀΣ\u0130ǅẞ中A1"), "àσi\u0307ǆß中a1");
}

}  // namespace
}  // namespace expertmesh::text
