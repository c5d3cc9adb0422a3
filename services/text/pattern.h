#pragma once

// What a text is split at or searched for: a string, a regular expression or
// a set of characters.

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/text/config_node.h"
#include "services/text/regex.h"

namespace expertmesh::text {

using CharacterTest = bool (*)(char32_t);

// Immutable; thread-safe. Shared by the steps that use it.
class Pattern {
 public:
  // Requires: `literal` is not empty.
  explicit Pattern(std::string literal) : form_(std::move(literal)) {}
  // Matches single characters.
  explicit Pattern(CharacterTest test) : form_(test) {}
  explicit Pattern(Regex regex) : form_(std::move(regex)) {}

  // Reads `owner`.pattern, {"String": s} or {"Regex": r}.
  static absl::StatusOr<std::shared_ptr<const Pattern>> FromConfig(
      const ConfigNode& owner);

  // Appends the matches in `text`, in order and without overlap.
  // Requires valid UTF-8. Errors: as Regex::FindAll.
  absl::Status FindAll(absl::string_view text,
                       std::vector<Range>* matches) const;

  // Replaces every match in `text` by `content`, taken literally.
  absl::Status ReplaceAll(absl::string_view content, std::string* text) const;

  // The string searched for, or null for the other forms.
  const std::string* literal() const {
    return std::get_if<std::string>(&form_);
  }

 private:
  std::variant<std::string, CharacterTest, Regex> form_;
};

}  // namespace expertmesh::text
