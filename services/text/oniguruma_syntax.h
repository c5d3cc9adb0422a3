#pragma once

// Regular expressions of tokenizer.json are written for Oniguruma; we match
// with PCRE2.

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh::text {

// Rewrites `pattern` so that PCRE2, with PCRE2_UTF, PCRE2_UCP and
// PCRE2_MULTILINE, matches what Oniguruma's own syntax means by it:
//   \w \W \s \S \b \B \h \H   Oniguruma's sets of characters
//   \uHHHH                    a character
//   x{2,3}+                   repeats x{2,3}; PCRE2 would make it possessive
//   x{,3}                     x{0,3}
//   (?m:...)                  lets . match a newline, PCRE2's (?s:...)
//   \p{Han}                   the script, without PCRE2's script extensions
// Errors: FAILED_PRECONDITION naming the construct for those that have no
// counterpart or another meaning: nested classes, intersections, POSIX
// brackets, \W and \S beside other items of a class, bytes (\xHH above 7F),
// \R, \X, \K and further letters, absence operators, (?x).
absl::StatusOr<std::string> OnigurumaToPcre2(absl::string_view pattern);

}  // namespace expertmesh::text
