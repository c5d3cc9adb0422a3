#pragma once

// Regular expressions over UTF-8, on PCRE2 with its just-in-time compiler.

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct pcre2_real_code_8;

namespace expertmesh::text {

// Bytes [begin, end) of a text.
struct Range {
  size_t begin;
  size_t end;
};

// Immutable; thread-safe. Unicode properties decide what \d and caseless mean.
class Regex {
 public:
  // Errors: FAILED_PRECONDITION with the reason.
  static absl::StatusOr<Regex> Compile(absl::string_view pcre2_pattern);
  // Translates first: see oniguruma_syntax.h.
  static absl::StatusOr<Regex> CompileOniguruma(absl::string_view pattern);

  // Appends the matches in `text`, in order and without overlap; an empty
  // match at the end of the one before is skipped.
  // Requires: `text` is valid UTF-8; it is not checked again.
  // Errors: INVALID_ARGUMENT for a text on which the pattern backtracks beyond
  // a limit that grows with the text.
  absl::Status FindAll(absl::string_view text,
                       std::vector<Range>* matches) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  using Code = std::unique_ptr<pcre2_real_code_8, FreeCode>;

  explicit Regex(Code code);

  Code code_;
};

}  // namespace expertmesh::text
