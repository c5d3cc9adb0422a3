#include "services/text/oniguruma_syntax.h"

#include <algorithm>
#include <array>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "services/core/status_macros.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

// Members of classes. Oniguruma takes the word characters below U+0100 from
// Latin-1, where superscripts and fractions count.
constexpr absl::string_view kWord =
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe";
// PCRE2's \s would add U+180E.
constexpr absl::string_view kSpace =
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"
    "\\x{202f}\\x{205f}\\x{3000}";
constexpr absl::string_view kHexDigit = "0-9A-Fa-f";

// Properties that PCRE2 and Oniguruma know by the same name. Two letters and
// fewer are general categories; any other name is a script.
constexpr std::array<absl::string_view, 10> kBinaryProperties = {
    "Any",        "ASCII",
    "Alphabetic", "Emoji",
    "Lowercase",  "Ideographic",
    "Uppercase",  "White_Space",
    "Math",       "Extended_Pictographic"};

// Escapes with a letter that mean the same to both.
constexpr absl::string_view kSameEscapes = "dDntrfaeAzZGkg";

absl::string_view ClassMembers(char escape) {
  switch (absl::ascii_tolower(escape)) {
    case 'w':
      return kWord;
    case 's':
      return kSpace;
    case 'h':
      return kHexDigit;
    default:
      return "";
  }
}

absl::Status Unsupported(absl::string_view construct) {
  return absl::FailedPreconditionError(absl::StrCat(
      "regular expressions with ", construct, " are not supported"));
}

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : rest_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (!rest_.empty()) RETURN_IF_ERROR(TranslateItem());
    return std::move(out_);
  }

 private:
  absl::Status TranslateItem() {
    switch (rest_[0]) {
      case '\\':
        atom_start_ = out_.size();
        return TranslateEscape(/*in_class=*/false);
      case '[':
        atom_start_ = out_.size();
        return TranslateClass();
      case '(':
        return TranslateGroupStart();
      case ')':
        return TranslateGroupEnd();
      case '{':
        return TranslateInterval();
      case '*':
      case '+':
      case '?':
        Copy(1);
        return absl::OkStatus();
      default:
        atom_start_ = out_.size();
        CopyCharacter();
        return absl::OkStatus();
    }
  }

  absl::Status TranslateEscape(bool in_class) {
    if (rest_.size() < 2) return Unsupported("a \\ at the end");
    const char c = rest_[1];
    switch (c) {
      case 'w':
      case 's':
      case 'h':
        Replace(2, in_class ? std::string(ClassMembers(c))
                            : absl::StrCat("[", ClassMembers(c), "]"));
        return absl::OkStatus();
      case 'W':
      case 'S':
      case 'H':
        return TranslateComplement(c, in_class);
      case 'b':
      case 'B':
        return TranslateWordBoundary(c == 'b', in_class);
      case 'p':
      case 'P':
        return TranslateProperty();
      case 'u':
        return TranslateCodePoint();
      case 'x':
        return TranslateHex();
      case 'v':  // PCRE2's \v is every vertical space
        Replace(2, "\\x0b");
        return absl::OkStatus();
      default:
        if (absl::ascii_isalpha(static_cast<unsigned char>(c)) &&
            !absl::StrContains(kSameEscapes, c)) {
          return Unsupported(absl::StrCat("\\", rest_.substr(1, 1)));
        }
        Copy(1);
        CopyCharacter();
        return absl::OkStatus();
    }
  }

  absl::Status TranslateComplement(char c, bool in_class) {
    if (!in_class) {
      Replace(2, absl::StrCat("[^", ClassMembers(c), "]"));
      return absl::OkStatus();
    }
    return Unsupported(
        absl::StrCat("\\", std::string(1, c), " inside a class"));
  }

  absl::Status TranslateWordBoundary(bool boundary, bool in_class) {
    if (in_class) return Unsupported("\\b inside a class");
    const std::string after = absl::StrCat("(?<=[", kWord, "])");
    const std::string not_after = absl::StrCat("(?<![", kWord, "])");
    const std::string before = absl::StrCat("(?=[", kWord, "])");
    const std::string not_before = absl::StrCat("(?![", kWord, "])");
    Replace(2, boundary ? absl::StrCat("(?:", after, not_before, "|", not_after,
                                       before, ")")
                        : absl::StrCat("(?:", after, before, "|", not_after,
                                       not_before, ")"));
    return absl::OkStatus();
  }

  // \p{Name}, \p{^Name}, \P{Name}
  absl::Status TranslateProperty() {
    const size_t close = rest_.find('}');
    if (rest_.size() < 3 || rest_[2] != '{' ||
        close == absl::string_view::npos) {
      return Unsupported("\\p without {...}");
    }
    absl::string_view name = rest_.substr(3, close - 3);
    const bool negated = absl::ConsumePrefix(&name, "^");
    const bool known =
        name.size() <= 2 ||
        std::find(kBinaryProperties.begin(), kBinaryProperties.end(), name) !=
            kBinaryProperties.end();
    const std::string head(rest_.substr(0, 2));
    Replace(close + 1, absl::StrCat(head, "{", negated ? "^" : "",
                                    known ? "" : "sc:", name, "}"));
    return absl::OkStatus();
  }

  absl::Status TranslateCodePoint() {
    const absl::string_view digits = rest_.substr(2, 4);
    uint32_t value;
    if (digits.size() < 4 || !absl::SimpleHexAtoi(digits, &value)) {
      return Unsupported("\\u without four hexadecimal digits");
    }
    Replace(6, absl::StrCat("\\x{", digits, "}"));
    return absl::OkStatus();
  }

  absl::Status TranslateHex() {
    if (rest_.size() > 2 && rest_[2] == '{') {
      Copy(3);
      return absl::OkStatus();
    }
    // Oniguruma reads \xE3 as one byte of a character.
    size_t length = 0;
    while (
        length < 2 && 2 + length < rest_.size() &&
        absl::ascii_isxdigit(static_cast<unsigned char>(rest_[2 + length]))) {
      ++length;
    }
    uint32_t value;
    if (!absl::SimpleHexAtoi(rest_.substr(2, length), &value) || value > 0x7F) {
      return Unsupported("\\x above 7F");
    }
    Copy(2 + length);
    return absl::OkStatus();
  }

  absl::Status TranslateClass() {
    Copy(1);
    if (absl::StartsWith(rest_, "^")) Copy(1);
    // A class with \S or \W as its only member is the complement; PCRE2 has
    // no other way to write it with our sets.
    if (rest_.size() > 2 && rest_[2] == ']' &&
        (absl::StartsWith(rest_, "\\S") || absl::StartsWith(rest_, "\\W"))) {
      const bool negated = out_.back() == '^';
      const absl::string_view members = ClassMembers(rest_[1]);
      out_.resize(atom_start_);
      Replace(3, absl::StrCat(negated ? "[" : "[^", members, "]"));
      return absl::OkStatus();
    }
    if (absl::StartsWith(rest_, "]")) Replace(1, "\\]");
    while (!rest_.empty() && rest_[0] != ']') {
      if (rest_[0] == '[') return Unsupported("a [ inside a class");
      if (absl::StartsWith(rest_, "&&")) return Unsupported("&& in a class");
      if (rest_[0] == '\\') {
        RETURN_IF_ERROR(TranslateEscape(/*in_class=*/true));
      } else {
        CopyCharacter();
      }
    }
    if (rest_.empty()) return Unsupported("a class without its ]");
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status TranslateGroupStart() {
    group_starts_.push_back(out_.size());
    Copy(1);
    if (!absl::StartsWith(rest_, "?")) return absl::OkStatus();
    // Flags: i, m and - up to : or ).
    const size_t end = rest_.find_first_not_of("imsxa-", 1);
    const bool has_flags = end != absl::string_view::npos && end > 1 &&
                           (rest_[end] == ':' || rest_[end] == ')');
    if (!has_flags) {
      if (absl::StartsWith(rest_, "?~")) return Unsupported("(?~");
      Copy(1);
      return absl::OkStatus();
    }
    std::string flags(rest_.substr(1, end - 1));
    if (flags.find_first_of("sxa") != std::string::npos) {
      return Unsupported("flags other than i and m");
    }
    std::replace(flags.begin(), flags.end(), 'm', 's');
    const std::string head = absl::StrCat("?", flags);
    Replace(end, head);
    return absl::OkStatus();
  }

  absl::Status TranslateGroupEnd() {
    if (group_starts_.empty()) return Unsupported("a ) without its (");
    atom_start_ = group_starts_.back();
    group_starts_.pop_back();
    Copy(1);
    return absl::OkStatus();
  }

  // {n}, {n,}, {n,m}, {,m}; anything else is literal text.
  absl::Status TranslateInterval() {
    const size_t close = rest_.find('}');
    const absl::string_view inside =
        close == absl::string_view::npos ? "" : rest_.substr(1, close - 1);
    const size_t comma = inside.find(',');
    const absl::string_view low = inside.substr(0, comma);
    const absl::string_view high =
        comma == absl::string_view::npos ? "" : inside.substr(comma + 1);
    const bool is_interval =
        (!low.empty() || !high.empty()) && IsNumber(low) && IsNumber(high);
    if (!is_interval) {
      atom_start_ = out_.size();
      Replace(1, "\\{");
      return absl::OkStatus();
    }
    Replace(close + 1, absl::StrCat("{", low.empty() ? "0" : "", inside, "}"));
    if (absl::StartsWith(rest_, "+")) {
      out_.insert(atom_start_, "(?:");
      Replace(1, ")+");
    }
    return absl::OkStatus();
  }

  static bool IsNumber(absl::string_view digits) {
    return std::all_of(digits.begin(), digits.end(),
                       [](unsigned char c) { return absl::ascii_isdigit(c); });
  }

  void Copy(size_t count) {
    Replace(count, std::string(rest_.substr(0, count)));
  }

  // Pattern characters are copied whole, so that an atom is never half of one.
  void CopyCharacter() {
    if (rest_.empty()) return;
    size_t size = 0;
    NextCharacter(rest_, &size);
    Copy(size);
  }

  void Replace(size_t count, const std::string& by) {
    absl::StrAppend(&out_, by);
    rest_.remove_prefix(count);
  }

  absl::string_view rest_;
  std::string out_;
  size_t atom_start_ = 0;  // in out_: what a quantifier would apply to
  std::vector<size_t> group_starts_;
};

}  // namespace

absl::StatusOr<std::string> OnigurumaToPcre2(absl::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace expertmesh::text
