#include "services/checkpoint/generation_config.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include <nlohmann/json.hpp>

#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr double kMaxFactor = 1e6;
constexpr double kMaxTemperature = 100;  // as requests may ask for

std::vector<int32_t> ParseEosTokenIds(ConfigReader& reader) {
  constexpr absl::string_view kField = "eos_token_id";
  std::vector<int32_t> ids;
  if (reader.IsList(kField)) {
    for (const int64_t id : reader.IntegerList(kField, kMaxInt32)) {
      ids.push_back(static_cast<int32_t>(id));
    }
  } else if (const auto id = reader.OptionalInteger(kField, 0, kMaxInt32)) {
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

std::vector<std::string> ParseStopStrings(ConfigReader& reader) {
  constexpr absl::string_view kField = "stop_strings";
  std::vector<std::string> stops;
  if (reader.IsString(kField)) {
    stops.push_back(reader.StringOr(kField, ""));
  } else {
    stops = reader.StringList(kField);
  }
  if (std::find(stops.begin(), stops.end(), "") != stops.end()) {
    reader.Fail(kField, "holds an empty string");
  }
  return stops;
}

std::optional<float> OptionalFloat(ConfigReader& reader,
                                   absl::string_view field, double max) {
  const std::optional<double> number = reader.OptionalNumber(field, 0.0, max);
  if (!number.has_value()) return std::nullopt;
  return static_cast<float>(*number);
}

std::optional<int32_t> OptionalCount(ConfigReader& reader,
                                     absl::string_view field, int64_t min) {
  const std::optional<int64_t> count =
      reader.OptionalInteger(field, min, kMaxInt32);
  if (!count.has_value()) return std::nullopt;
  return static_cast<int32_t>(*count);
}

}  // namespace

absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(
    const std::string& path, ConfigReader& model_config) {
  absl::StatusOr<nlohmann::json> json = ReadJsonFile(path, kMaxFileBytes);
  // Only a name that is not there at all is no file: a link may lead nowhere.
  std::error_code ignored;
  if (absl::IsNotFound(json.status()) &&
      !std::filesystem::is_symlink(path, ignored)) {
    json = nlohmann::json::object();
  }
  if (!json.ok()) return json.status();
  ConfigReader reader(path, *json);
  GenerationDefaults defaults;
  defaults.eos_token_ids =
      ParseEosTokenIds(reader.Has("eos_token_id") ? reader : model_config);
  defaults.do_sample = reader.OptionalBool("do_sample");
  defaults.temperature = OptionalFloat(reader, "temperature", kMaxTemperature);
  // Some releases write -1 for "all".
  if (const auto top_k = OptionalCount(reader, "top_k", -1)) {
    defaults.top_k = std::max(*top_k, 0);
  }
  defaults.top_p = OptionalFloat(reader, "top_p", 1.0);
  defaults.min_p = OptionalFloat(reader, "min_p", 1.0);
  defaults.repetition_penalty =
      OptionalFloat(reader, "repetition_penalty", kMaxFactor);
  if (defaults.repetition_penalty == 0.0f) {
    reader.Fail("repetition_penalty", "must be above 0");
  }
  if (defaults.top_p == 0.0f) reader.Fail("top_p", "must be above 0");
  defaults.min_new_tokens = OptionalCount(reader, "min_new_tokens", 0);
  defaults.max_new_tokens = OptionalCount(reader, "max_new_tokens", 1);
  defaults.stop_strings = ParseStopStrings(reader);
  RETURN_IF_ERROR(reader.status());
  RETURN_IF_ERROR(model_config.status());
  return defaults;
}

}  // namespace expertmesh
