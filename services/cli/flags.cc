#include "services/cli/flags.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "services/runtime/address.h"
#include "services/text/utf8.h"

namespace expertmesh {
namespace {

// CLI11 takes an empty message for success.
CLI::Validator FromStatus(absl::Status (*check)(absl::string_view)) {
  return CLI::Validator(
      [check](std::string& text) { return std::string(check(text).message()); },
      "");
}

std::optional<double> FiniteNumber(absl::string_view text) {
  double number;
  if (!absl::SimpleAtod(text, &number) || !std::isfinite(number)) {
    return std::nullopt;
  }
  return number;
}

}  // namespace

CLI::Validator IsHostPort() {
  return FromStatus(
      [](absl::string_view text) { return ParseHostPort(text).status(); });
}

CLI::Validator IsTokenIds() {
  return FromStatus(
      [](absl::string_view text) { return ParseTokenIds(text).status(); });
}

CLI::Validator IsPoolSize() {
  return FromStatus(
      [](absl::string_view text) { return ParsePoolSize(text).status(); });
}

CLI::Validator IsUtf8() { return FromStatus(CheckUtf8); }

CLI::Validator IsWholeNumber(uint64_t least, uint64_t most) {
  // Signs are refused first: CLI11 would take -1 for the greatest number.
  return CLI::Validator(
      [least, most](std::string& text) -> std::string {
        uint64_t number;
        if (!text.empty() && absl::ascii_isdigit(text.front()) &&
            absl::SimpleAtoi(text, &number) && number >= least &&
            number <= most) {
          return "";
        }
        return absl::StrCat("\"", text, "\" is not a whole number from ", least,
                            " to ", most);
      },
      "");
}

CLI::Validator IsNonNegative() {
  return FromStatus([](absl::string_view text) {
    const std::optional<double> number = FiniteNumber(text);
    if (number && *number >= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not a number of at least 0"));
  });
}

CLI::Validator IsPositive() {
  return FromStatus([](absl::string_view text) {
    const std::optional<double> number = FiniteNumber(text);
    if (number && *number > 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not a number above 0"));
  });
}

absl::StatusOr<std::vector<uint32_t>> ParseTokenIds(absl::string_view text) {
  absl::string_view list = absl::StripAsciiWhitespace(text);
  if (absl::ConsumePrefix(&list, "[") && !absl::ConsumeSuffix(&list, "]")) {
    return absl::InvalidArgumentError("the list of token ids lacks its \"]\"");
  }
  std::vector<uint32_t> ids;
  if (absl::StripAsciiWhitespace(list).empty()) return ids;
  for (const absl::string_view part : absl::StrSplit(list, ',')) {
    const absl::string_view digits = absl::StripAsciiWhitespace(part);
    uint32_t id;
    if (digits.empty() || !absl::ascii_isdigit(digits.front()) ||
        !absl::SimpleAtoi(digits, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", part, "\" is not a token id; give them as 1,2,3"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<PoolSize> ParsePoolSize(absl::string_view text) {
  const size_t equals = text.find('=');
  PoolSize size;
  if (equals != absl::string_view::npos) {
    const absl::string_view digits = text.substr(equals + 1);
    size.pool = std::string(text.substr(0, equals));
    if (!size.pool.empty() && !digits.empty() &&
        absl::ascii_isdigit(digits.front()) &&
        absl::SimpleAtoi(digits, &size.services)) {
      return size;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text, "\" is not POOL=N, such as hot=3"));
}

absl::Status CheckUtf8(absl::string_view text) {
  const size_t offset = text::FindInvalidUtf8(text);
  if (offset == absl::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the text is not UTF-8: bad byte at offset ", offset));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::string contents;
  FILE* file = fopen(path.c_str(), "rb");
  bool ok = file != nullptr;
  if (ok) {
    char buffer[1 << 16];
    size_t n;
    while ((n = fread(buffer, 1, sizeof(buffer), file)) > 0) {
      contents.append(buffer, n);
    }
    ok = ferror(file) == 0;  // a folder opens, but does not read
  }
  const int error = errno;
  if (file != nullptr) fclose(file);
  if (ok) return contents;
  return absl::NotFoundError(
      absl::StrCat("cannot read ", path, ": ", strerror(error)));
}

}  // namespace expertmesh
