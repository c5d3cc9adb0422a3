#pragma once

// Flags of metrics and traces that both services have.

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertmesh {

// Which series by layer or expert /metrics has.
enum class ExpertDetail {
  kOff,   // none
  kTopK,  // by layer, and the hottest experts by rank: a bounded number
  kFull,  // one for each expert of each layer as well
};

// Errors: INVALID_ARGUMENT naming the flag and what it accepts.
absl::StatusOr<ExpertDetail> ParseExpertDetail(absl::string_view name);

// --metrics-expert-detail and --trace-file.
void AddObservabilityOptions(CLI::App& app, std::string* metrics_expert_detail,
                             std::string* trace_file);

}  // namespace expertmesh
