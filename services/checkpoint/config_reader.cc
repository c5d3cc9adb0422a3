#include "services/checkpoint/config_reader.h"

#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

#include "services/checkpoint/json_reader.h"

namespace expertmesh {
namespace {

using nlohmann::json;

std::optional<int64_t> AsInteger(const json& value) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) {
    return std::nullopt;
  }
  if (!value.is_number_integer()) return std::nullopt;
  return value.get<int64_t>();
}

const json& EmptyObject() {
  static const json empty = json::object();
  return empty;
}

}  // namespace

ConfigReader::ConfigReader(absl::string_view file, const json& object)
    : ConfigReader(std::string(file), "", object,
                   std::make_shared<absl::Status>()) {}

ConfigReader::ConfigReader(std::string file, std::string prefix,
                           const json& object,
                           std::shared_ptr<absl::Status> status)
    : file_(std::move(file)),
      prefix_(std::move(prefix)),
      object_(&object),
      status_(std::move(status)) {}

void ConfigReader::SetFault(std::string message) {
  if (!status_->ok()) return;
  *status_ = absl::FailedPreconditionError(absl::StrCat(file_, ": ", message));
}

const json* ConfigReader::Find(absl::string_view field) const {
  const auto found = object_->find(std::string(field));
  if (found == object_->end() || found->is_null()) return nullptr;
  return &*found;
}

bool ConfigReader::Has(absl::string_view field) const {
  return Find(field) != nullptr;
}

bool ConfigReader::IsNull(absl::string_view field) const {
  const auto found = object_->find(std::string(field));
  return found != object_->end() && found->is_null();
}

bool ConfigReader::IsString(absl::string_view field) const {
  const json* value = Find(field);
  return value != nullptr && value->is_string();
}

bool ConfigReader::IsObject(absl::string_view field) const {
  const json* value = Find(field);
  return value != nullptr && value->is_object();
}

bool ConfigReader::IsList(absl::string_view field) const {
  const json* value = Find(field);
  return value != nullptr && value->is_array();
}

std::optional<int64_t> ConfigReader::OptionalInteger(absl::string_view field,
                                                     int64_t min, int64_t max) {
  const json* value = Find(field);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = AsInteger(*value);
  if (number.has_value() && *number >= min && *number <= max) return number;
  Fail(field, "must be a whole number from ", min, " to ", max, ", not ",
       Shown(*value));
  return min;
}

std::optional<int64_t> ConfigReader::OptionalSize(absl::string_view field,
                                                  int64_t max) {
  return OptionalInteger(field, 1, max);
}

int64_t ConfigReader::SizeOr(absl::string_view field, int64_t fallback,
                             int64_t max) {
  return OptionalSize(field, max).value_or(fallback);
}

int64_t ConfigReader::Size(std::initializer_list<absl::string_view> spellings,
                           int64_t max) {
  std::optional<int64_t> size;
  for (const absl::string_view field : spellings) {
    const std::optional<int64_t> given = OptionalSize(field, max);
    if (size.has_value() && given.has_value() && *given != *size) {
      Fail(field, "(", *given, ") contradicts ", *spellings.begin(), " (",
           *size, ")");
    }
    if (given.has_value()) size = given;
  }
  if (size.has_value()) return *size;
  Fail(*spellings.begin(), "is missing");
  return 1;
}

std::optional<double> ConfigReader::OptionalNumber(absl::string_view field,
                                                   double min, double max) {
  const json* value = Find(field);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number >= min && number <= max) return number;
  }
  Fail(field, "must be a number from ", min, " to ", max, ", not ",
       Shown(*value));
  return min;
}

double ConfigReader::PositiveOr(absl::string_view field, double fallback) {
  const json* value = Find(field);
  if (value == nullptr) return fallback;
  if (value->is_number()) {
    const double number = value->get<double>();
    // Wider than any real model, and safe in float arithmetic.
    if (number >= 1e-12 && number <= 1e12) return number;
  }
  Fail(field, "must be a number from 1e-12 to 1e12, not ", Shown(*value));
  return fallback;
}

double ConfigReader::Positive(absl::string_view field) {
  if (!Has(field)) Fail(field, "is missing");
  return PositiveOr(field, 1.0);
}

std::optional<bool> ConfigReader::OptionalBool(absl::string_view field) {
  const json* value = Find(field);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  Fail(field, "must be true or false, not ", Shown(*value));
  return std::nullopt;
}

bool ConfigReader::BoolOr(absl::string_view field, bool fallback) {
  return OptionalBool(field).value_or(fallback);
}

std::string ConfigReader::StringOr(absl::string_view field,
                                   absl::string_view fallback) {
  const json* value = Find(field);
  if (value == nullptr) return std::string(fallback);
  if (value->is_string()) return value->get<std::string>();
  Fail(field, "must be a string, not ", Shown(*value));
  return std::string(fallback);
}

std::vector<int64_t> ConfigReader::IntegerList(absl::string_view field,
                                               int64_t max) {
  const json* list = Find(field);
  std::vector<int64_t> numbers;
  if (list == nullptr) return numbers;
  if (!list->is_array()) Fail(field, "must be a list, not ", Shown(*list));
  for (const json& value : *list) {
    const std::optional<int64_t> number = AsInteger(value);
    if (!number.has_value() || *number < 0 || *number > max) {
      Fail(field, "must list whole numbers from 0 to ", max, ", not ",
           Shown(value));
      return numbers;
    }
    numbers.push_back(*number);
  }
  return numbers;
}

std::vector<std::string> ConfigReader::StringList(absl::string_view field) {
  const json* list = Find(field);
  std::vector<std::string> strings;
  if (list == nullptr) return strings;
  if (!list->is_array()) Fail(field, "must be a list, not ", Shown(*list));
  for (const json& value : *list) {
    if (!value.is_string()) {
      Fail(field, "must list strings, not ", Shown(value));
      return strings;
    }
    strings.push_back(value.get<std::string>());
  }
  return strings;
}

ConfigReader ConfigReader::Object(absl::string_view field) {
  const json* value = Find(field);
  if (value != nullptr && !value->is_object()) {
    Fail(field, "must be an object, not ", Shown(*value));
    value = nullptr;
  }
  return ConfigReader(file_, absl::StrCat(prefix_, field, "."),
                      value == nullptr ? EmptyObject() : *value, status_);
}

}  // namespace expertmesh
