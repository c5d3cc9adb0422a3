#include "router_service/router_config.h"

#include <algorithm>
#include <initializer_list>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "router_service/dispatch/routing.h"
#include "services/core/status_macros.h"
#include "services/runtime/address.h"
#include "services/runtime/observability_options.h"

namespace expertmesh::router {
namespace {

// A number of a flag and what it may be.
struct Range {
  absl::string_view flag;
  double value;
  double least;
  double most;
};

constexpr double kMaxThreads = 1024;
// A step's workspace grows with its tokens; beyond this it would not be worth
// its memory.
constexpr double kMaxStepTokens = 1 << 16;
constexpr double kMaxQueue = 1e6;
constexpr double kMaxKvCacheTokens = 2e9;    // slots have 32 bits
constexpr double kMaxKvCacheBytes = 0x1p50;  // 1 PiB
constexpr double kMaxCapacityFactor = 1e6;
constexpr double kMaxRows = 1e9;
constexpr double kMaxSeconds = 86400;

absl::Status CheckRange(const Range& range) {
  // NaN is neither.
  if (range.value >= range.least && range.value <= range.most) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %.15g; it must be from %.15g to %.15g", range.flag,
                      range.value, range.least, range.most));
}

absl::Status CheckDType(absl::string_view flag, const std::string& value,
                        absl::string_view choices) {
  if (value == "auto" || value == "f32" || value == "bf16") {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is '", value, "'; it must be ", choices));
}

void AddControlOptions(CLI::App& app, RouterConfig* config) {
  app.add_flag_callback(
      "--control", [config] { config->control = true; },
      "Place experts: one router of a mesh does; default: with --experts-at");
  app.add_flag_callback(
      "--no-control", [config] { config->control = false; },
      "Leave placement to another router; default: with --mesh-config");
  app.add_option("--rebalance", config->rebalance,
                 "Move experts without being asked: off, auto (the router with "
                 "--control)")
      ->capture_default_str();
  app.add_option("--load-window", config->load_window_seconds,
                 "Seconds over which the demand for experts is counted")
      ->capture_default_str();
  app.add_option("--rebalance-interval", config->rebalance_interval_seconds,
                 "Seconds between two looks whether to move experts")
      ->capture_default_str();
  app.add_option("--rebalance-min-improvement",
                 config->rebalance_min_improvement,
                 "Share by which the slowest host's work must fall to move "
                 "experts for it")
      ->capture_default_str();
  app.add_option("--rebalance-windows", config->rebalance_windows,
                 "Looks in a row that must find so much")
      ->capture_default_str();
  app.add_option("--rebalance-pause", config->rebalance_pause_seconds,
                 "Seconds between two automatic rebalances")
      ->capture_default_str();
  app.add_option("--rebalance-bytes-per-minute",
                 config->rebalance_bytes_per_minute,
                 "Weights that automatic rebalances load in a minute, as in "
                 "4GiB; 0: no limit")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
}

absl::Status CheckAddress(absl::string_view flag, const std::string& address) {
  const auto parsed = ParseHostPort(address);
  if (parsed.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": ", parsed.status().message()));
}

}  // namespace

void AddRouterOptions(CLI::App& app, RouterConfig* config) {
  app.add_option("--model", config->model,
                 "Checkpoint folder in Hugging Face form")
      ->required();
  app.add_option("--experts-at", config->experts_at,
                 "HOST:PORT of each expert service, separated by commas")
      ->delimiter(',');
  app.add_option("--mesh-config", config->mesh_config,
                 "Mesh file: the pools of expert services, instead of "
                 "--experts-at");
  app.add_option("--resolve-interval", config->resolve_interval_seconds,
                 "Seconds between two lookups of a pool's name")
      ->capture_default_str();
  app.add_option("--listen", config->listen,
                 "HOST:PORT for clients; port 0: any free port")
      ->capture_default_str();
  app.add_option("--admin-listen", config->admin_listen,
                 "HOST:PORT for operators, and for expert services that pull "
                 "weights; port 0: any free port; default: 127.0.0.1, and the "
                 "port two above that of --listen");
  app.add_option("--health-listen", config->health_listen,
                 "HOST:PORT where health alone is asked for, without TLS; port "
                 "0: any free port; none: off");
  app.add_option("--metrics-listen", config->metrics_listen,
                 "HOST:PORT for Prometheus; port 0: any free port")
      ->capture_default_str();
  app.add_option("--ready-file", config->ready_file,
                 "File that gets the addresses as JSON once all experts are "
                 "covered");
  app.add_flag("--exit-with-parent", config->exit_with_parent,
               "Stop when the process that started this one ends");
  app.add_flag_callback(
      "--no-shared-memory", [config] { config->shared_memory = false; },
      "Reach expert services on this host over gRPC, as all others");
  app.add_flag_callback(
      "--no-lend-weights", [config] { config->lend_weights = false; },
      "Refuse to lend the checkpoint at --admin-listen to expert services "
      "with --weights-from; default: whoever reaches --admin-listen may read "
      "the weights");
  app.add_option("--client-connection-age",
                 config->client_connection_age_seconds,
                 "Seconds after which a client's next call needs a new "
                 "connection, which a load balancer may lead elsewhere; calls "
                 "under way go on. 0: no limit")
      ->capture_default_str();
  AddTlsOptions(app, "connections of clients",
                "clients, who then need one; none: they need none",
                &config->client_tls);
  app.add_option("--client-tokens", config->client_tokens,
                 "File of bearer tokens, one on each line, of which clients "
                 "need one; read again when it changes. Needs TLS");
  AddTlsOptions(app, "connections to expert services and at --admin-listen",
                "expert services and operators", &config->mesh_tls);
  app.add_option("--pack-cache", config->pack_cache,
                 "Folder where packed weights are kept, so that the next start "
                 "reads them instead of packing; services may share it");
  app.add_option("--router-dtype", config->router_dtype,
                 "The router's own arithmetic: auto (as the checkpoint), f32, "
                 "bf16; or int8, int4: weights in codes, the rest as auto")
      ->capture_default_str();
  app.add_option("--kv-dtype", config->kv_dtype,
                 "Keys and values: auto (as activations), f32, bf16; or int8: "
                 "codes of 8 bits with a scale per position and head")
      ->capture_default_str();
  app.add_option("--wire-dtype", config->wire_dtype,
                 "Activations to and from experts: auto (as the checkpoint), "
                 "f32, bf16; or int8: codes of 8 bits with a scale per row")
      ->capture_default_str();
  app.add_option("--combine-group-size", config->combine_group_size,
                 "Experts whose outputs are added up first, by the service "
                 "where it has all that a token chose: 1 or more, or all; the "
                 "same for every router of a mesh")
      ->capture_default_str();
  app.add_option("--threads", config->threads,
                 "Worker threads; 0: as many as there are CPUs")
      ->capture_default_str();
  app.add_option("--micro-batches", config->micro_batches,
                 "Parts of a step that take turns, so that experts work for "
                 "one while attention does for the other: 1, 2, or auto: what "
                 "proves faster")
      ->capture_default_str();
  app.add_option("--max-step-tokens", config->max_step_tokens,
                 "Tokens computed in one step, decode and prefill together")
      ->capture_default_str();
  app.add_option("--max-sequences", config->max_sequences,
                 "Requests running at once; never more than --max-step-tokens "
                 "less the 16 that prefill always has")
      ->capture_default_str();
  app.add_option("--max-queue", config->max_queue,
                 "Requests waiting before new ones are refused")
      ->capture_default_str();
  app.add_option("--target-inter-token-latency",
                 config->target_inter_token_latency_seconds,
                 "Seconds that a step should take at most where requests wait "
                 "for their next token; less prefill joins it. 0: no target")
      ->capture_default_str();
  app.add_option("--priority-step", config->priority_step_seconds,
                 "Seconds of waiting that are worth one priority")
      ->capture_default_str();
  app.add_option("--prefix-cache", config->prefix_cache,
                 "Keep keys and values of prompts and answers while there is "
                 "room, for prompts that begin the same: on, off")
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
  app.add_option("--max-lost-gate-mass", config->max_lost_gate_mass,
                 "Share of gate mass that next_best and drop may cost over the "
                 "last 30 s; rows that would cost more wait; 1: no bound")
      ->capture_default_str();
  AddControlOptions(app, config);
  app.add_flag("--mix-numerics", config->mix_numerics,
               "Send rows to expert services of any numerics_id, such as CPUs "
               "and GPUs, by their speed; results then depend in the last bits "
               "on who served, but for exact requests; default: those of "
               "another id serve only where no other can");
  app.add_option("--uncovered-timeout", config->uncovered_timeout_seconds,
                 "Seconds to wait for an expert that no service serves before "
                 "the requests that need it fail; next_best and drop do "
                 "without it at once")
      ->capture_default_str();
  app.add_option("--hedge-budget", config->hedge_budget,
                 "Share of batches that may be asked of a second replica "
                 "because the first is late; 0: none")
      ->capture_default_str();
  app.add_option("--drain-timeout", config->drain_timeout_seconds,
                 "Seconds running requests get to finish after SIGTERM")
      ->capture_default_str();
  app.add_option("--scaler-listen", config->scaler_listen,
                 "HOST:PORT for KEDA's external scaler; port 0: any free port; "
                 "none: off");
  app.add_option("--scale-target-utilization", config->scale_target_utilization,
                 "Share of time that a pool's expert services should be busy")
      ->capture_default_str();
  app.add_option("--scale-window", config->scale_window_seconds,
                 "Seconds over which a pool's load is measured")
      ->capture_default_str();
  app.add_option("--scale-down-window", config->scale_down_window_seconds,
                 "Seconds for which a pool must need fewer replicas before it "
                 "is told so")
      ->capture_default_str();
  AddObservabilityOptions(app, &config->metrics_expert_detail,
                          &config->trace_file);
  app.add_option("--trace-sample", config->trace_sample,
                 "Share of requests traced although their client did not ask "
                 "for it, with --trace-file")
      ->capture_default_str();
  AddLogOptions(app, &config->log);
}

std::string AdminListen(const RouterConfig& config) {
  if (!config.admin_listen.empty()) return config.admin_listen;
  HostPort address = DefaultAdminAddress(*ParseHostPort(config.listen));
  if (address.host != "::1") address.host = "127.0.0.1";
  return address.ToString();
}

absl::Status CheckRouterConfig(const RouterConfig& config) {
  if (config.experts_at.empty() == config.mesh_config.empty()) {
    return absl::InvalidArgumentError(
        "exactly one of --experts-at and --mesh-config must say where the "
        "expert services are");
  }
  for (const std::string& address : config.experts_at) {
    RETURN_IF_ERROR(CheckAddress("--experts-at", address));
  }
  RETURN_IF_ERROR(CheckMeshTls(config.mesh_tls));
  if (config.client_tls.cert.empty() &&
      !(config.client_tls.ca.empty() && config.client_tokens.empty())) {
    return absl::InvalidArgumentError(absl::StrCat(
        config.client_tokens.empty() ? "--client-tls-ca" : "--client-tokens",
        " needs --client-tls-cert and --client-tls-key"));
  }
  if (config.trace_sample > 0 && config.trace_file.empty()) {
    return absl::InvalidArgumentError("--trace-sample needs --trace-file");
  }
  RETURN_IF_ERROR(CheckAddress("--listen", config.listen));
  RETURN_IF_ERROR(CheckAddress("--admin-listen", AdminListen(config)));
  if (!config.health_listen.empty()) {
    RETURN_IF_ERROR(CheckAddress("--health-listen", config.health_listen));
  }
  if (config.router_dtype != "int8" && config.router_dtype != "int4") {
    RETURN_IF_ERROR(CheckDType("--router-dtype", config.router_dtype,
                               "auto, f32, bf16, int8 or int4"));
  }
  if (config.kv_dtype != "int8") {
    RETURN_IF_ERROR(
        CheckDType("--kv-dtype", config.kv_dtype, "auto, f32, bf16 or int8"));
  }
  if (config.wire_dtype != "int8") {
    RETURN_IF_ERROR(CheckDType("--wire-dtype", config.wire_dtype,
                               "auto, f32, bf16 or int8"));
  }
  if (CombineGroupSize(config, /*num_experts=*/1) == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--combine-group-size is '", config.combine_group_size,
                     "'; it must be all, or a number from 1"));
  }
  if (config.micro_batches != "auto" && config.micro_batches != "1" &&
      config.micro_batches != "2") {
    return absl::InvalidArgumentError(
        absl::StrCat("--micro-batches is '", config.micro_batches,
                     "'; it must be auto, 1 or 2"));
  }
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  for (const Range& range : std::initializer_list<Range>{
           {"--threads", number(config.threads), 0, kMaxThreads},
           {"--max-step-tokens", number(config.max_step_tokens), 1,
            kMaxStepTokens},
           {"--max-sequences", number(config.max_sequences), 1, kMaxStepTokens},
           {"--max-queue", number(config.max_queue), 1, kMaxQueue},
           {"--target-inter-token-latency",
            config.target_inter_token_latency_seconds, 0, kMaxSeconds},
           {"--priority-step", config.priority_step_seconds, 0, kMaxSeconds},
           {"--kv-cache-tokens", number(config.kv_cache_tokens), 0,
            kMaxKvCacheTokens},
           {"--kv-cache-bytes", number(config.kv_cache_bytes), 1,
            kMaxKvCacheBytes},
           {"--capacity-factor", config.capacity_factor, 0, kMaxCapacityFactor},
           {"--min-capacity", number(config.min_capacity), 1, kMaxRows},
           {"--max-lost-gate-mass", config.max_lost_gate_mass, 0, 1},
           {"--load-window", config.load_window_seconds, 1, kMaxSeconds},
           {"--rebalance-interval", config.rebalance_interval_seconds, 0.05,
            kMaxSeconds},
           {"--rebalance-min-improvement", config.rebalance_min_improvement, 0,
            1},
           {"--rebalance-windows", number(config.rebalance_windows), 1,
            kMaxRows},
           {"--rebalance-pause", config.rebalance_pause_seconds, 0,
            kMaxSeconds},
           {"--rebalance-bytes-per-minute",
            number(config.rebalance_bytes_per_minute), 0, kMaxKvCacheBytes},
           {"--uncovered-timeout", config.uncovered_timeout_seconds, 0,
            kMaxSeconds},
           {"--client-connection-age", config.client_connection_age_seconds, 0,
            kMaxSeconds},
           {"--hedge-budget", config.hedge_budget, 0, 1},
           {"--resolve-interval", config.resolve_interval_seconds, 0.05,
            kMaxSeconds},
           {"--trace-sample", config.trace_sample, 0, 1},
           {"--drain-timeout", config.drain_timeout_seconds, 0, kMaxSeconds},
           {"--scale-target-utilization", config.scale_target_utilization, 0.01,
            1},
           {"--scale-window", config.scale_window_seconds, 1, kMaxSeconds},
           {"--scale-down-window", config.scale_down_window_seconds, 0,
            kMaxSeconds}}) {
    RETURN_IF_ERROR(CheckRange(range));
  }
  if (config.rebalance != "off" && config.rebalance != "auto") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--rebalance is '", config.rebalance, "'; it must be off or auto"));
  }
  if (config.rebalance == "auto" && !config.controls()) {
    return absl::InvalidArgumentError(
        "--rebalance=auto is for the router with --control");
  }
  if (config.prefix_cache != "on" && config.prefix_cache != "off") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--prefix-cache is '", config.prefix_cache, "'; it must be on or off"));
  }
  RETURN_IF_ERROR(ParseExpertDetail(config.metrics_expert_detail).status());
  const auto policy = ParseOverflowPolicy(config.overflow_policy);
  if (!policy.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--overflow-policy: ", policy.status().message()));
  }
  return absl::OkStatus();
}

std::optional<WeightFormat> RouterWeightFormat(const RouterConfig& config) {
  const auto format = ParseWeightFormat(config.router_dtype);
  if (format.ok() && IsQuantized(*format)) return *format;
  return std::nullopt;
}

KvFormat RouterKvFormat(const RouterConfig& config, DType activations) {
  return ParseKvFormat(config.kv_dtype).value_or(KvFormatOf(activations));
}

int64_t CombineGroupSize(const RouterConfig& config, int64_t num_experts) {
  if (config.combine_group_size == "all") return num_experts;
  int64_t size = 0;
  if (!absl::SimpleAtoi(config.combine_group_size, &size) || size < 1) return 0;
  return std::min(size, num_experts);
}

DType WireDType(const RouterConfig& config, DType checkpoint) {
  if (config.wire_dtype == "int8") return DType::kInt8;
  return ActivationDType(config.wire_dtype, checkpoint);
}

DType ActivationDType(const std::string& flag, DType checkpoint) {
  if (flag == "f32") return DType::kF32;
  if (flag == "bf16") return DType::kBF16;
  return checkpoint == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

}  // namespace expertmesh::router
