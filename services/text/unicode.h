#pragma once

// Character properties and normal forms, on utf8proc. Pure functions; texts
// are valid UTF-8.

#include <string>

#include "absl/strings/string_view.h"

namespace expertmesh::text {

// The property White_Space.
bool IsWhiteSpace(char32_t character);
// General categories Nd, Nl and No.
bool IsNumeric(char32_t character);
// ASCII punctuation and symbols, and the general categories P*.
bool IsPunctuation(char32_t character);

// Lower case, character by character, without regard to language or position.
std::string ToLower(absl::string_view text);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Time linear in the text but for sorting runs of combining marks.
std::string Normalize(absl::string_view text, NormalForm form);

}  // namespace expertmesh::text
