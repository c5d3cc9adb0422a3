#include "services/runtime/observability_options.h"

#include "absl/strings/str_cat.h"

namespace expertmesh {

absl::StatusOr<ExpertDetail> ParseExpertDetail(absl::string_view name) {
  if (name == "off") return ExpertDetail::kOff;
  if (name == "topk") return ExpertDetail::kTopK;
  if (name == "full") return ExpertDetail::kFull;
  return absl::InvalidArgumentError(absl::StrCat(
      "--metrics-expert-detail is '", name, "'; it must be off, topk or full"));
}

void AddObservabilityOptions(CLI::App& app, std::string* metrics_expert_detail,
                             std::string* trace_file) {
  app.add_option("--metrics-expert-detail", *metrics_expert_detail,
                 "Series of /metrics by layer or expert: off: none; topk: a "
                 "bounded number; full: one for each expert of each layer too")
      ->capture_default_str();
  app.add_option("--trace-file", *trace_file,
                 "File that spans of sampled requests are appended to, as "
                 "OTLP/JSON lines; default: none are written");
}

}  // namespace expertmesh
