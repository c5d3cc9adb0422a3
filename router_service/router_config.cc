#include "router_service/router_config.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "router_service/dispatch/routing.h"
#include "services/core/status_macros.h"
#include "services/runtime/address.h"

namespace expertmesh::router {
namespace {

absl::Status AtLeast(absl::string_view flag, double value, double least) {
  if (std::isfinite(value) && value >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is ", value, "; it must be at least ", least));
}

absl::Status CheckDType(absl::string_view flag, const std::string& value) {
  if (value == "auto" || value == "f32" || value == "bf16") {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is '", value, "'; it must be auto, f32 or bf16"));
}

}  // namespace

void AddRouterOptions(CLI::App& app, RouterConfig* config) {
  app.add_option("--model", config->model,
                 "Checkpoint folder in Hugging Face form")
      ->required();
  app.add_option("--experts-at", config->experts_at,
                 "HOST:PORT of each expert service, separated by commas")
      ->required()
      ->delimiter(',');
  app.add_option("--listen", config->listen,
                 "HOST:PORT for clients; port 0: any free port")
      ->capture_default_str();
  app.add_option("--metrics-listen", config->metrics_listen,
                 "HOST:PORT for Prometheus; port 0: any free port")
      ->capture_default_str();
  app.add_option("--ready-file", config->ready_file,
                 "File that gets the addresses as JSON once all experts are "
                 "covered");
  app.add_flag("--exit-with-parent", config->exit_with_parent,
               "Stop when the process that started this one ends");
  app.add_option("--router-dtype", config->router_dtype,
                 "Activations and KV cache: auto (as the checkpoint), f32, "
                 "bf16")
      ->capture_default_str();
  app.add_option("--wire-dtype", config->wire_dtype,
                 "Activations to and from experts: auto (as the checkpoint), "
                 "f32, bf16")
      ->capture_default_str();
  app.add_option("--threads", config->threads,
                 "Worker threads; 0: as many as there are CPUs")
      ->capture_default_str();
  app.add_option("--max-step-tokens", config->max_step_tokens,
                 "Tokens computed in one step, decode and prefill together")
      ->capture_default_str();
  app.add_option("--max-sequences", config->max_sequences,
                 "Requests running at once; never more than --max-step-tokens")
      ->capture_default_str();
  app.add_option("--max-queue", config->max_queue,
                 "Requests waiting before new ones are refused")
      ->capture_default_str();
  app.add_option("--kv-cache-tokens", config->kv_cache_tokens,
                 "Tokens the KV cache holds; 0: as many as fit in "
                 "--kv-cache-bytes")
      ->capture_default_str();
  app.add_option("--kv-cache-bytes", config->kv_cache_bytes,
                 "Memory for the KV cache, at most")
      ->capture_default_str();
  app.add_option("--capacity-factor", config->capacity_factor,
                 "Rows an expert accepts per step and layer, over the mean; 0: "
                 "no limit")
      ->capture_default_str();
  app.add_option("--min-capacity", config->min_capacity,
                 "Rows an expert accepts per step and layer, at least")
      ->capture_default_str();
  app.add_option("--overflow-policy", config->overflow_policy,
                 "For rows above capacity: wait (exact), next_best, drop; "
                 "requests may choose their own")
      ->capture_default_str();
  app.add_option("--expert-timeout", config->expert_timeout_seconds,
                 "Seconds after which an unanswered batch fails")
      ->capture_default_str();
  app.add_option("--drain-timeout", config->drain_timeout_seconds,
                 "Seconds running requests get to finish after SIGTERM")
      ->capture_default_str();
  AddLogOptions(app, &config->log);
}

absl::Status CheckRouterConfig(const RouterConfig& config) {
  for (const std::string& address : config.experts_at) {
    const auto parsed = ParseHostPort(address);
    if (parsed.ok()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--experts-at: ", parsed.status().message()));
  }
  RETURN_IF_ERROR(CheckDType("--router-dtype", config.router_dtype));
  RETURN_IF_ERROR(CheckDType("--wire-dtype", config.wire_dtype));
  RETURN_IF_ERROR(AtLeast("--threads", config.threads, 0));
  RETURN_IF_ERROR(AtLeast("--max-step-tokens",
                          static_cast<double>(config.max_step_tokens), 1));
  RETURN_IF_ERROR(
      AtLeast("--max-sequences", static_cast<double>(config.max_sequences), 1));
  RETURN_IF_ERROR(
      AtLeast("--max-queue", static_cast<double>(config.max_queue), 1));
  RETURN_IF_ERROR(AtLeast("--kv-cache-tokens",
                          static_cast<double>(config.kv_cache_tokens), 0));
  RETURN_IF_ERROR(AtLeast("--kv-cache-bytes",
                          static_cast<double>(config.kv_cache_bytes), 1));
  RETURN_IF_ERROR(AtLeast("--capacity-factor", config.capacity_factor, 0));
  RETURN_IF_ERROR(
      AtLeast("--min-capacity", static_cast<double>(config.min_capacity), 1));
  RETURN_IF_ERROR(
      AtLeast("--expert-timeout", config.expert_timeout_seconds, 0.001));
  RETURN_IF_ERROR(AtLeast("--drain-timeout", config.drain_timeout_seconds, 0));
  const auto policy = ParseOverflowPolicy(config.overflow_policy);
  if (!policy.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--overflow-policy: ", policy.status().message()));
  }
  if (config.max_step_tokens > (1 << 16)) {
    return absl::InvalidArgumentError(
        "--max-step-tokens is above 65536; its workspace would not be worth "
        "its memory");
  }
  return absl::OkStatus();
}

DType ActivationDType(const std::string& flag, DType checkpoint) {
  if (flag == "f32") return DType::kF32;
  if (flag == "bf16") return DType::kBF16;
  return checkpoint == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

}  // namespace expertmesh::router
