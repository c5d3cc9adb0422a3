#include "services/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/oniguruma_syntax.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) {
    return absl::StrCat("PCRE2 error ", code);
  }
  return reinterpret_cast<const char*>(buffer);
}

// What a match writes into. One per thread: a compiled pattern is shared, and
// splitting a text makes one match per word.
struct MatchScratch {
  MatchScratch()
      : data(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)) {}
  ~MatchScratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;

  pcre2_match_data* data;
  pcre2_match_context* context;
};

MatchScratch& ThreadScratch() {
  thread_local MatchScratch scratch;
  return scratch;
}

// Giving up a run of a million spaces one by one is fine; an exponential
// search is not.
uint32_t MatchLimit(size_t text_bytes) {
  constexpr uint64_t kBase = 10'000'000;
  constexpr uint64_t kPerByte = 100;
  return static_cast<uint32_t>(std::min<uint64_t>(
      kBase + kPerByte * text_bytes, std::numeric_limits<uint32_t>::max()));
}

constexpr uint32_t kHeapLimitKib = 256 * 1024;

// The first match at or after `from`, as pcre2_match returns it.
int Search(const pcre2_code* code, absl::string_view text, size_t from,
           const MatchScratch& scratch) {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const int result =
      pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                  scratch.data, scratch.context);
  if (result != PCRE2_ERROR_JIT_STACKLIMIT) return result;
  // Compiled code keeps backtracking points on a small stack; the interpreter
  // keeps them on the heap.
  return pcre2_match(code, subject, text.size(), from,
                     PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch.data,
                     scratch.context);
}

size_t NextBoundary(absl::string_view text, size_t offset) {
  if (offset >= text.size()) return offset + 1;
  NextCharacter(text, &offset);
  return offset;
}

}  // namespace

void Regex::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

Regex::Regex(Code code) : code_(std::move(code)) {}

absl::StatusOr<Regex> Regex::Compile(absl::string_view pcre2_pattern) {
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  // An unusual build of PCRE2 could take another newline.
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  Code code(pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(pcre2_pattern.data()), pcre2_pattern.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
      &error_offset, context));
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("regular expression not understood: ", ErrorText(error),
                     " at offset ", error_offset, " of ", pcre2_pattern));
  }
  // Where memory cannot be made executable the interpreter does the work.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return Regex(std::move(code));
}

absl::StatusOr<Regex> Regex::CompileOniguruma(absl::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string translated, OnigurumaToPcre2(pattern));
  return Compile(translated);
}

absl::Status Regex::FindAll(absl::string_view text,
                            std::vector<Range>* matches) const {
  const MatchScratch& scratch = ThreadScratch();
  pcre2_set_match_limit(scratch.context, MatchLimit(text.size()));
  pcre2_set_heap_limit(scratch.context, kHeapLimitKib);
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(scratch.data);
  size_t from = 0;
  bool matched_before = false;
  while (from <= text.size()) {
    const int result = Search(code_.get(), text, from, scratch);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the tokenizer's pattern gives up on the text at byte ",
                       from, ": ", ErrorText(result)));
    }
    const Range match{offsets[0], offsets[1]};
    if (matched_before && match.begin == match.end && match.end == from) {
      from = NextBoundary(text, from);
      matched_before = false;
      continue;
    }
    matches->push_back(match);
    from = match.end;
    matched_before = true;
  }
  return absl::OkStatus();
}

}  // namespace expertmesh::text
