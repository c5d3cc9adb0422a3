// The machine-readable form of bench_report.h.

#include <google/protobuf/util/json_util.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "services/cli/bench_report.h"

namespace expertmesh {
namespace {

using Json = nlohmann::ordered_json;

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json LoadJson(const LoadLevel& load) {
  Json json;
  json["concurrency"] = OrNull(load.concurrency);
  // JSON has no infinity.
  json["request_rate"] = load.request_rate && std::isinf(*load.request_rate)
                             ? Json("inf")
                             : OrNull(load.request_rate);
  json["max_requests"] = OrNull(load.max_requests);
  json["duration_seconds"] =
      load.duration ? Json(absl::ToDoubleSeconds(*load.duration)) : Json();
  return json;
}

// "next_best"; null: the deployment's.
Json PolicyJson(v1::OverflowPolicy policy) {
  if (policy == v1::OVERFLOW_POLICY_UNSPECIFIED) return Json();
  return absl::AsciiStrToLower(
      absl::StripPrefix(v1::OverflowPolicy_Name(policy), "OVERFLOW_POLICY_"));
}

Json SettingsJson(const BenchSettings& settings) {
  const RequestOptions& requests = settings.requests;
  Json json;
  json["server"] = settings.server;
  json["timeout_seconds"] = OrNull(settings.timeout_seconds);
  json["warmup_requests"] = settings.warmup_requests;
  json["prompts"] =
      settings.texts_file.empty() ? Json() : Json(settings.texts_file);
  json["prompt_tokens"] = settings.texts_file.empty()
                              ? Json(requests.prompt_tokens.text())
                              : Json();
  json["shared_prefix_tokens"] = requests.shared_prefix_tokens;
  json["output_tokens"] = requests.output_tokens.text();
  json["temperature"] = OrNull(requests.temperature);
  json["overflow_policy"] = PolicyJson(requests.overflow_policy);
  json["exact"] = requests.exact;
  json["seed"] = requests.seed;
  return json;
}

Json ModelJson(const v1::Model& model) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(model, &text, options)
           .ok()) {
    return Json();
  }
  return Json::parse(text, nullptr, false);
}

Json QuantilesJson(const Quantiles& quantiles) {
  if (quantiles.count == 0) return Json({{"count", 0}});
  return Json({{"count", quantiles.count},
               {"mean", quantiles.mean},
               {"p50", quantiles.p50},
               {"p90", quantiles.p90},
               {"p95", quantiles.p95},
               {"p99", quantiles.p99},
               {"max", quantiles.max}});
}

Json RequestsJson(const BenchSummary& summary) {
  return Json({{"sent", summary.requests()},
               {"completed", summary.completed},
               {"failed", summary.failed},
               {"unfinished", summary.unfinished},
               {"cut_short", summary.cut_short}});
}

Json FailuresJson(const BenchSummary& summary) {
  Json json = Json::object();
  for (const auto& [code, failure] : summary.failures) {
    json[code] = {{"count", failure.count}, {"message", failure.message}};
  }
  return json;
}

Json PerSecondJson(const BenchSummary& summary) {
  return Json({{"requests", summary.PerSecond(summary.completed)},
               {"prompt_tokens", summary.PerSecond(summary.prompt_tokens)},
               {"output_tokens", summary.PerSecond(summary.output_tokens)},
               {"tokens", summary.PerSecond(summary.prompt_tokens +
                                            summary.output_tokens)}});
}

Json LatencyJson(const BenchSummary& summary) {
  return Json(
      {{"time_to_first_token", QuantilesJson(summary.first_token)},
       {"inter_token", QuantilesJson(summary.inter_token)},
       {"time_per_output_token", QuantilesJson(summary.per_output_token)},
       {"end_to_end", QuantilesJson(summary.end_to_end)},
       {"queue", QuantilesJson(summary.queue)}});
}

Json RoutingJson(const BenchSummary::Routing& routing) {
  return Json({{"primary", routing.primary},
               {"replica", routing.replica},
               {"waited", routing.waited},
               {"rerouted", routing.rerouted},
               {"dropped", routing.dropped},
               {"gate_mass_kept", routing.gate_mass_kept}});
}

}  // namespace

std::string LevelJson(const BenchSettings& settings, const LevelReport& level) {
  const BenchSummary& summary = level.summary;
  Json json;
  json["load"] = LoadJson(level.load);
  json["settings"] = SettingsJson(settings);
  json["model"] = ModelJson(settings.model);
  json["begun"] =
      absl::FormatTime(absl::RFC3339_sec, level.begun, absl::UTCTimeZone());
  json["seconds"] = summary.seconds;
  json["requests"] = RequestsJson(summary);
  json["failures"] = FailuresJson(summary);
  json["tokens"] = {{"prompt", summary.prompt_tokens},
                    {"output", summary.output_tokens}};
  json["per_second"] = PerSecondJson(summary);
  json["latency_seconds"] = LatencyJson(summary);
  json["routing"] = RoutingJson(summary.routing);
  json["client"] = {{"cpu_share", summary.client_cpu_share},
                    {"delay_seconds", QuantilesJson(summary.client_delay)}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace expertmesh
