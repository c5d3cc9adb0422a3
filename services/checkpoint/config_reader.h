#pragma once

// Typed access to the fields of a JSON configuration file.

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// Reads fields one after the other and remembers the first fault, so that a
// family's parser is a plain list of fields with one check at its end. After a
// fault every read still returns a value of its type (a size is at least 1).
// A field that is null counts as absent. Not thread-safe.
class ConfigReader {
 public:
  // Largest size accepted where a field sets no limit of its own.
  static constexpr int64_t kMaxSize = int64_t{1} << 24;

  // `file` names the source in errors. `object` must be a JSON object and
  // outlive the reader.
  ConfigReader(absl::string_view file, const nlohmann::json& object);

  // The first fault: FAILED_PRECONDITION "<file>: <field> …".
  const absl::Status& status() const { return *status_; }
  template <typename... Args>
  void Fail(absl::string_view field, const Args&... message) {
    SetFault(absl::StrCat(prefix_, field, " ", message...));
  }

  bool Has(absl::string_view field) const;
  bool IsNull(absl::string_view field) const;  // written, but as null
  bool IsString(absl::string_view field) const;
  bool IsObject(absl::string_view field) const;
  bool IsList(absl::string_view field) const;

  // A required whole number in [1, max]. Of several spellings any may be given;
  // those given must agree.
  int64_t Size(std::initializer_list<absl::string_view> spellings,
               int64_t max = kMaxSize);
  int64_t SizeOr(absl::string_view field, int64_t fallback,
                 int64_t max = kMaxSize);
  std::optional<int64_t> OptionalSize(absl::string_view field,
                                      int64_t max = kMaxSize);
  // A whole number in [min, max].
  std::optional<int64_t> OptionalInteger(absl::string_view field, int64_t min,
                                         int64_t max);
  // A finite number in [min, max].
  std::optional<double> OptionalNumber(absl::string_view field, double min,
                                       double max);
  // A finite number above zero.
  double PositiveOr(absl::string_view field, double fallback);
  double Positive(absl::string_view field);
  std::optional<bool> OptionalBool(absl::string_view field);
  bool BoolOr(absl::string_view field, bool fallback);
  std::string StringOr(absl::string_view field, absl::string_view fallback);
  // Whole numbers in [0, max]; empty when absent.
  std::vector<int64_t> IntegerList(absl::string_view field, int64_t max);
  std::vector<std::string> StringList(absl::string_view field);

  // A nested object; one without fields when absent. Faults in it are faults of
  // this reader.
  ConfigReader Object(absl::string_view field);

 private:
  ConfigReader(std::string file, std::string prefix,
               const nlohmann::json& object,
               std::shared_ptr<absl::Status> status);
  const nlohmann::json* Find(absl::string_view field) const;
  void SetFault(std::string message);

  std::string file_;
  std::string prefix_;  // of nested fields: "rope_scaling."
  const nlohmann::json* object_;
  std::shared_ptr<absl::Status> status_;  // shared with nested readers
};

}  // namespace expertmesh
