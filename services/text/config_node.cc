#include "services/text/config_node.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/text/utf8.h"

namespace expertmesh::text {
namespace {

constexpr int64_t kIntLimit = int64_t{1} << 24;

}  // namespace

ConfigNode::ConfigNode(const nlohmann::json* value, std::string place)
    : value_(value), place_(std::move(place)) {}

absl::Status ConfigNode::Error(absl::string_view message) const {
  return absl::FailedPreconditionError(
      absl::StrCat(place_, place_.empty() ? "" : ": ", message));
}

bool ConfigNode::Has(absl::string_view key) const {
  if (!value_->is_object()) return false;
  const auto found = value_->find(std::string(key));
  return found != value_->end() && !found->is_null();
}

absl::Status ConfigNode::AllowKeys(
    std::initializer_list<absl::string_view> keys) const {
  if (!value_->is_object()) return Error("must be an object");
  for (const auto& item : value_->items()) {
    if (std::find(keys.begin(), keys.end(), item.key()) == keys.end()) {
      return Error(absl::StrCat("option ", item.key(), " is not supported"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ConfigNode> ConfigNode::Get(absl::string_view key) const {
  if (!Has(key)) return Error(absl::StrCat("lacks ", key));
  return ConfigNode(&*value_->find(std::string(key)),
                    absl::StrCat(place_, place_.empty() ? "" : ".", key));
}

absl::StatusOr<std::vector<ConfigNode>> ConfigNode::GetList(
    absl::string_view key) const {
  ASSIGN_OR_RETURN(const ConfigNode list, Get(key));
  if (!list.value().is_array()) return list.Error("must be a list");
  std::vector<ConfigNode> elements;
  for (const nlohmann::json& element : list.value()) {
    elements.emplace_back(&element,
                          absl::StrCat(list.place_, "[", elements.size(), "]"));
  }
  return elements;
}

absl::StatusOr<std::string> ConfigNode::GetString(absl::string_view key) const {
  ASSIGN_OR_RETURN(const ConfigNode node, Get(key));
  return node.AsString();
}

absl::StatusOr<std::string> ConfigNode::GetCharacter(
    absl::string_view key) const {
  ASSIGN_OR_RETURN(const ConfigNode node, Get(key));
  ASSIGN_OR_RETURN(std::string text, node.AsString());
  size_t size = 0;
  if (!text.empty()) NextCharacter(text, &size);
  if (text.empty() || size != text.size()) {
    return node.Error("must be one character");
  }
  return text;
}

absl::StatusOr<bool> ConfigNode::GetBool(absl::string_view key) const {
  ASSIGN_OR_RETURN(const ConfigNode node, Get(key));
  if (!node.value().is_boolean()) return node.Error("must be true or false");
  return node.value().get<bool>();
}

absl::StatusOr<bool> ConfigNode::GetBool(absl::string_view key,
                                         bool absent) const {
  if (!Has(key)) return absent;
  return GetBool(key);
}

absl::StatusOr<int32_t> ConfigNode::GetInt(absl::string_view key) const {
  ASSIGN_OR_RETURN(const ConfigNode node, Get(key));
  return node.AsInt();
}

absl::StatusOr<std::string> ConfigNode::AsString() const {
  if (!value_->is_string()) return Error("must be a string");
  return value_->get<std::string>();
}

absl::StatusOr<int32_t> ConfigNode::AsInt() const {
  if (!value_->is_number_integer()) return Error("must be an integer");
  // Beyond 2^63 the conversion wraps to a negative number, refused as well.
  const int64_t number = value_->get<int64_t>();
  if (number < 0 || number >= kIntLimit) {
    return Error(absl::StrCat(number, " is not in [0, ", kIntLimit, ")"));
  }
  return static_cast<int32_t>(number);
}

}  // namespace expertmesh::text
