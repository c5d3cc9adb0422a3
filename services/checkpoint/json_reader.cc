#include "services/checkpoint/json_reader.h"

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "services/checkpoint/mapped_file.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 32;

// Walks the text without building anything and stops at the first fault, so
// that hostile nesting costs nothing.
class StrictSyntax : public nlohmann::json_sax<json> {
 public:
  const std::string& fault() const { return fault_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }

  bool start_object(std::size_t) override { return Enter(); }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }

  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    fault_ = absl::StrCat("key ", Quoted(name), " appears twice");
    return false;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const json::exception&) override {
    fault_ = absl::StrCat("malformed JSON at byte ", position);
    return false;
  }

 private:
  bool Enter() {
    keys_.emplace_back();
    if (keys_.size() <= kMaxDepth) return true;
    fault_ = absl::StrCat("JSON nested deeper than ", kMaxDepth, " levels");
    return false;
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;  // of every open object
  std::string fault_;
};

// At most kMaxShown bytes, cut between UTF-8 characters.
absl::string_view Shortened(absl::string_view text) {
  constexpr size_t kMaxShown = 160;
  if (text.size() <= kMaxShown) return text;
  size_t size = kMaxShown;
  while (size > 0 && (text[size] & 0xc0) == 0x80) --size;
  return text.substr(0, size);
}

}  // namespace

std::string Quoted(absl::string_view name) {
  return absl::StrCat("'", absl::Utf8SafeCEscape(Shortened(name)),
                      Shortened(name) == name ? "'" : "…'");
}

std::string Shown(const json& value) {
  const std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  return absl::StrCat(Shortened(text), Shortened(text) == text ? "" : "…");
}

absl::StatusOr<json> ParseJsonObject(absl::string_view file,
                                     absl::string_view text) {
  StrictSyntax syntax;
  if (!json::sax_parse(text.begin(), text.end(), &syntax)) {
    return absl::FailedPreconditionError(
        absl::StrCat(file, ": ", syntax.fault()));
  }
  json value = json::parse(text.begin(), text.end(), nullptr,
                           /*allow_exceptions=*/false);
  if (!value.is_object()) {
    return absl::FailedPreconditionError(
        absl::StrCat(file, ": must hold one JSON object"));
  }
  return value;
}

absl::StatusOr<json> ReadJsonFile(const std::string& path, size_t max_bytes) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  if (file.size() > max_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": longer than ", max_bytes, " bytes"));
  }
  return ParseJsonObject(
      path, absl::string_view(reinterpret_cast<const char*>(file.data()),
                              file.size()));
}

}  // namespace expertmesh
