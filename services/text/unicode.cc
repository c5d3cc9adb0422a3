#include "services/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

bool Composes(NormalForm form) {
  return form == NormalForm::kNfc || form == NormalForm::kNfkc;
}

bool IsCompatibility(NormalForm form) {
  return form == NormalForm::kNfkc || form == NormalForm::kNfkd;
}

// Whether `text` holds only characters that `form` leaves alone: ASCII, and
// for NFC everything below U+0300, whose first byte is below 0xCC.
bool IsTriviallyNormal(absl::string_view text, NormalForm form) {
  const unsigned char limit = form == NormalForm::kNfc ? 0xCC : 0x80;
  return std::all_of(text.begin(), text.end(), [limit](char byte) {
    return static_cast<unsigned char>(byte) < limit;
  });
}

std::vector<utf8proc_int32_t> Decompose(absl::string_view text,
                                        utf8proc_option_t options) {
  // The longest decomposition, that of U+FDFA, has 18 characters.
  utf8proc_int32_t expansion[32];
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  int last_boundary_class = 0;
  for (size_t offset = 0; offset < text.size();) {
    const char32_t character = NextCharacter(text, &offset);
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(character), expansion,
        std::size(expansion), options, &last_boundary_class);
    characters.insert(characters.end(), expansion,
                      expansion + std::max<utf8proc_ssize_t>(count, 0));
  }
  return characters;
}

// utf8proc's own ordering is an insertion sort: quadratic for a text that
// stacks a million marks on one letter.
void OrderMarks(std::vector<utf8proc_int32_t>* characters) {
  const auto mark_class = [](utf8proc_int32_t character) {
    return utf8proc_get_property(character)->combining_class;
  };
  const auto is_starter = [&](utf8proc_int32_t c) {
    return mark_class(c) == 0;
  };
  auto begin = characters->begin();
  while (begin != characters->end()) {
    begin = std::find_if_not(begin, characters->end(), is_starter);
    const auto end = std::find_if(begin, characters->end(), is_starter);
    std::stable_sort(begin, end, [&](auto a, auto b) {
      return mark_class(a) < mark_class(b);
    });
    begin = end;
  }
}

}  // namespace

bool IsWhiteSpace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0D);
  return c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsNumeric(char32_t character) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(character))) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return false;
  }
}

bool IsPunctuation(char32_t character) {
  if (character < 0x80) {
    return absl::ascii_ispunct(static_cast<unsigned char>(character));
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(character))) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
      return true;
    default:
      return false;
  }
}

std::string ToLower(absl::string_view text) {
  std::string lower;
  lower.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const char32_t character = NextCharacter(text, &offset);
    AppendUtf8(static_cast<char32_t>(
                   utf8proc_tolower(static_cast<utf8proc_int32_t>(character))),
               &lower);
    // İ is the one character whose lower case has two; utf8proc knows only
    // mappings to one.
    if (character == 0x130) AppendUtf8(0x307, &lower);
  }
  return lower;
}

std::string Normalize(absl::string_view text, NormalForm form) {
  if (IsTriviallyNormal(text, form)) return std::string(text);
  int options = UTF8PROC_STABLE;
  options |= Composes(form) ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (IsCompatibility(form)) options |= UTF8PROC_COMPAT;

  std::vector<utf8proc_int32_t> characters =
      Decompose(text, static_cast<utf8proc_option_t>(options));
  OrderMarks(&characters);
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      characters.data(), static_cast<utf8proc_ssize_t>(characters.size()),
      static_cast<utf8proc_option_t>(options));
  characters.resize(static_cast<size_t>(count));

  std::string normal;
  normal.reserve(text.size());
  for (utf8proc_int32_t character : characters) {
    AppendUtf8(static_cast<char32_t>(character), &normal);
  }
  return normal;
}

}  // namespace expertmesh::text
