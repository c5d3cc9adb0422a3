#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/config_reader.h"

namespace expertmesh {

// generation_config.json; absent fields are unset.
struct GenerationDefaults {
  std::vector<int32_t> eos_token_ids;
  std::optional<bool> do_sample;
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int32_t> max_new_tokens;
  std::optional<int32_t> min_new_tokens;
  std::vector<std::string> stop_strings;  // none is empty
};

// Reads `path` (a file that is missing leaves all unset). End-of-sequence ids
// may be one id, a list or null; when they are absent there, those of
// config.json (`model_config`) hold. Stop strings may be one or a list.
// Errors: FAILED_PRECONDITION naming file and field.
absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(
    const std::string& path, ConfigReader& model_config);

}  // namespace expertmesh
