#include "expert_service/expert_config.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/core/status_macros.h"
#include "services/runtime/address.h"
#include "services/runtime/observability_options.h"

namespace expertmesh::expert {
namespace {

// Workspace rows beyond this are a mistyped number, not a wish.
constexpr int64_t kMaxBatchRowsLimit = 1 << 20;
// Credits are shared among streams at every answer, in time that grows with
// them.
constexpr int64_t kMaxStreamsLimit = 4096;

// What a parser said of a flag's value, with the flag's name.
absl::Status CheckParsed(absl::string_view flag, const absl::Status& parsed) {
  if (parsed.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", parsed.message()));
}

absl::Status CheckAddress(absl::string_view flag, const std::string& value) {
  return CheckParsed(flag, ParseHostPort(value).status());
}

absl::Status CheckDevice(const ExpertConfig& config) {
  RETURN_IF_ERROR(
      CheckParsed("--device", ParseDeviceWish(config.device).status()));
  RETURN_IF_ERROR(
      CheckParsed("--numerics", ParseNumerics(config.numerics).status()));
  // Written so that NaN fails too.
  if (!(config.device_memory_fraction > 0 &&
        config.device_memory_fraction <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--device-memory-fraction: ", config.device_memory_fraction,
        " is not above 0 and at most 1"));
  }
  return absl::OkStatus();
}

}  // namespace

void AddExpertOptions(CLI::App& app, ExpertConfig* config) {
  app.add_option("--model", config->model, "Checkpoint folder");
  app.add_option("--weights-from", config->weights_from,
                 "HOST:PORT of routers or expert services, by commas, to pull "
                 "weights from where there is no checkpoint folder");
  app.add_option("--weights-cache", config->weights_cache,
                 "Folder for pulled weights, which a restart finds again");
  app.add_option("--weights-wait", config->weights_wait_seconds,
                 "Seconds to wait at start for one of --weights-from to answer "
                 "where the cache holds nothing")
      ->capture_default_str();
  app.add_option("--weights-rate-limit", config->weights_rate_limit_bytes_per_s,
                 "Bytes per second to pull at most, as in 50MiB; 0: no limit")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_option("--pack-cache", config->pack_cache,
                 "Folder where packed weights are kept, so that the next start "
                 "reads them instead of packing; services may share it");
  app.add_option("--experts", config->experts,
                 "Experts held at first: 0-3,7 in every layer, 17@3 for expert "
                 "17 of layer 3 only, none for a host that is given experts "
                 "while it runs; default: all");
  app.add_option("--memory-budget", config->memory_budget_bytes,
                 "What expert weights may take, as in 512MiB; 0: no limit")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_option("--listen", config->listen,
                 "HOST:PORT for routers; port 0: any free port")
      ->capture_default_str();
  app.add_option("--health-listen", config->health_listen,
                 "HOST:PORT where health alone is asked for, without TLS; port "
                 "0: any free port; none: off");
  app.add_option("--metrics-listen", config->metrics_listen,
                 "HOST:PORT of /metrics; port 0: any free port")
      ->capture_default_str();
  app.add_option("--ready-file", config->ready_file,
                 "Written once serving: addresses as JSON");
  app.add_flag("--exit-with-parent", config->exit_with_parent,
               "Drain and exit when the parent process ends");
  app.add_flag_callback(
      "--no-shared-memory", [config] { config->shared_memory = false; },
      "Serve routers on this host over gRPC, as all others");
  AddTlsOptions(app, "connections of routers, and to those who lend weights",
                "routers and who lends weights", &config->mesh_tls);
  app.add_option("--expert-dtype", config->expert_dtype,
                 "Weights in memory: f32, bf16, int8 (a scale per output), "
                 "int4 (a step per 32 as well), or auto: the checkpoint's type")
      ->capture_default_str();
  app.add_option("--threads", config->threads,
                 "Threads that compute; 0: the CPUs at hand")
      ->capture_default_str();
  app.add_option("--device", config->device,
                 "What computes: cpu, cuda, cuda:N, or auto: CUDA device 0 "
                 "where there is one, else the CPU")
      ->capture_default_str();
  app.add_option("--numerics", config->numerics,
                 "invariant: a row's bits do not depend on other rows; fast: "
                 "on a CUDA device they may, which is faster for many rows of "
                 "bf16 experts, and needs cuBLAS")
      ->capture_default_str();
  app.add_option("--device-memory-fraction", config->device_memory_fraction,
                 "Part of a CUDA device's memory that weights and workspaces "
                 "may take")
      ->capture_default_str();
  app.add_option("--max-batch-rows", config->max_batch_rows,
                 "Rows computed at once; merging aims at it")
      ->capture_default_str();
  app.add_option("--queue-rows", config->queue_rows,
                 "Rows that may wait; more are refused")
      ->capture_default_str();
  app.add_option("--max-streams", config->max_streams,
                 "Streams of routers at a time; more are refused")
      ->capture_default_str();
  app.add_option("--max-bytes-in-flight", config->max_bytes_in_flight,
                 "Batches and their answers held at a time, as in 1GiB; more "
                 "are refused")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_option("--drain-timeout", config->drain_timeout_seconds,
                 "Seconds to answer what is under way before exiting")
      ->capture_default_str();
  AddObservabilityOptions(app, &config->metrics_expert_detail,
                          &config->trace_file);
  AddLogOptions(app, &config->log);
}

std::vector<std::string> WeightPeerAddresses(const ExpertConfig& config) {
  return absl::StrSplit(config.weights_from, ',', absl::SkipEmpty());
}

absl::Status CheckExpertConfig(const ExpertConfig& config) {
  if (config.model.empty() && config.weights_from.empty()) {
    return absl::InvalidArgumentError(
        "--model is required, or --weights-from for a host without one");
  }
  for (const std::string& peer : WeightPeerAddresses(config)) {
    RETURN_IF_ERROR(CheckAddress("--weights-from", peer));
  }
  if (!config.weights_from.empty() && config.weights_cache.empty()) {
    return absl::InvalidArgumentError(
        "--weights-cache: is required with --weights-from");
  }
  RETURN_IF_ERROR(CheckAddress("--listen", config.listen));
  RETURN_IF_ERROR(CheckAddress("--metrics-listen", config.metrics_listen));
  if (!config.health_listen.empty()) {
    RETURN_IF_ERROR(CheckAddress("--health-listen", config.health_listen));
  }
  RETURN_IF_ERROR(CheckMeshTls(config.mesh_tls));
  if (config.experts == "none" && config.memory_budget_bytes == 0) {
    return absl::InvalidArgumentError(
        "--experts: a host with none needs a --memory-budget, by which it is "
        "given some");
  }
  const auto format = ParseWeightFormat(config.expert_dtype);
  if (config.expert_dtype != "auto" &&
      (!format.ok() || *format == WeightFormat::kF16)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--expert-dtype: '", config.expert_dtype,
                     "' is not one of auto, f32, bf16, int8, int4"));
  }
  if (config.threads < 0 || config.threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads: ", config.threads, " is not from 0 to 1024"));
  }
  RETURN_IF_ERROR(ParseExpertDetail(config.metrics_expert_detail).status());
  RETURN_IF_ERROR(CheckDevice(config));
  if (config.max_batch_rows < 1 || config.max_batch_rows > kMaxBatchRowsLimit) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-batch-rows: ", config.max_batch_rows,
                     " is not from 1 to ", kMaxBatchRowsLimit));
  }
  if (config.queue_rows < 1 || config.queue_rows > UINT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--queue-rows: ", config.queue_rows, " is not from 1 to ", UINT32_MAX));
  }
  if (config.max_streams < 1 || config.max_streams > kMaxStreamsLimit) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-streams: ", config.max_streams,
                     " is not from 1 to ", kMaxStreamsLimit));
  }
  if (config.max_bytes_in_flight == 0) {
    return absl::InvalidArgumentError(
        "--max-bytes-in-flight: 0 bytes hold no batch");
  }
  // Written so that NaN fails too.
  for (const auto& [flag, seconds] :
       {std::pair("--weights-wait", config.weights_wait_seconds),
        std::pair("--drain-timeout", config.drain_timeout_seconds)}) {
    if (seconds >= 0 && seconds <= 86400) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": ", seconds, " is not from 0 to 86400 seconds"));
  }
  return absl::OkStatus();
}

std::optional<WeightFormat> ExpertWeightFormat(const ExpertConfig& config) {
  if (config.expert_dtype == "auto") return std::nullopt;
  return *ParseWeightFormat(config.expert_dtype);
}

DeviceWish ExpertDeviceWish(const ExpertConfig& config) {
  return *ParseDeviceWish(config.device);
}

Numerics ExpertNumerics(const ExpertConfig& config) {
  return *ParseNumerics(config.numerics);
}

}  // namespace expertmesh::expert
