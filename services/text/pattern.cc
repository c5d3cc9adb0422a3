#include "services/text/pattern.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

void FindLiteral(absl::string_view text, absl::string_view literal,
                 std::vector<Range>* matches) {
  size_t begin = 0;
  while ((begin = text.find(literal, begin)) != absl::string_view::npos) {
    matches->push_back({begin, begin + literal.size()});
    begin += literal.size();
  }
}

void FindCharacters(absl::string_view text, CharacterTest test,
                    std::vector<Range>* matches) {
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    if (test(NextCharacter(text, &offset))) matches->push_back({begin, offset});
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Pattern>> Pattern::FromConfig(
    const ConfigNode& owner) {
  ASSIGN_OR_RETURN(const ConfigNode pattern, owner.Get("pattern"));
  RETURN_IF_ERROR(pattern.AllowKeys({"String", "Regex"}));
  if (pattern.Has("String")) {
    ASSIGN_OR_RETURN(std::string literal, pattern.GetString("String"));
    if (literal.empty()) return pattern.Error("an empty string is no pattern");
    return std::make_shared<const Pattern>(std::move(literal));
  }
  ASSIGN_OR_RETURN(const std::string source, pattern.GetString("Regex"));
  absl::StatusOr<Regex> regex = Regex::CompileOniguruma(source);
  if (!regex.ok()) return pattern.Error(regex.status().message());
  return std::make_shared<const Pattern>(*std::move(regex));
}

absl::Status Pattern::FindAll(absl::string_view text,
                              std::vector<Range>* matches) const {
  if (const auto* regex = std::get_if<Regex>(&form_)) {
    return regex->FindAll(text, matches);
  }
  if (const auto* test = std::get_if<CharacterTest>(&form_)) {
    FindCharacters(text, *test, matches);
  } else {
    FindLiteral(text, *literal(), matches);
  }
  return absl::OkStatus();
}

absl::Status Pattern::ReplaceAll(absl::string_view content,
                                 std::string* text) const {
  // An empty text has no matches, not even empty ones.
  if (text->empty()) return absl::OkStatus();
  std::vector<Range> matches;
  RETURN_IF_ERROR(FindAll(*text, &matches));
  if (matches.empty()) return absl::OkStatus();
  const absl::string_view old = *text;
  std::string replaced;
  size_t end = 0;
  for (const Range& match : matches) {
    absl::StrAppend(&replaced, old.substr(end, match.begin - end), content);
    end = match.end;
  }
  absl::StrAppend(&replaced, old.substr(end));
  *text = std::move(replaced);
  return absl::OkStatus();
}

}  // namespace expertmesh::text
