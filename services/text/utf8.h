#pragma once

// UTF-8 as bytes: checking, reading and writing. Pure functions.

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace expertmesh::text {

// What stands at the front of bytes that may not be UTF-8.
enum class Utf8Front {
  kCharacter,   // a whole character
  kInvalid,     // bytes that no character starts with
  kIncomplete,  // a proper prefix of a character, and nothing after it
};

// Classifies the front of `bytes`, which must not be empty. `*size` becomes
// the length of the character, or of the longest run of bytes that one U+FFFD
// stands for (the "maximal subpart" of the Unicode standard, chapter 3).
Utf8Front ClassifyUtf8(absl::string_view bytes, size_t* size);

// Offset of the first byte that is not part of a character, or npos.
size_t FindInvalidUtf8(absl::string_view text);

// The character at `*offset`, which moves behind it.
// Requires: valid UTF-8 and `*offset` at the start of a character.
char32_t NextCharacter(absl::string_view text, size_t* offset);

// Where the character that ends at `end` starts. Requires: as above, end > 0.
size_t PreviousBoundary(absl::string_view text, size_t end);

void AppendUtf8(char32_t character, std::string* out);

// U+FFFD, the replacement character, in UTF-8.
inline constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace expertmesh::text
