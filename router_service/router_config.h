#pragma once

// Every knob of the router service: unit, default, check.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/core/dtype.h"
#include "services/linalg/kv_format.h"
#include "services/linalg/weight_format.h"
#include "services/runtime/command_line.h"

namespace expertmesh::router {

struct RouterConfig {
  std::string model;  // checkpoint folder
  // Where the expert services are: one of the two is given.
  std::vector<std::string> experts_at;     // HOST:PORT of each
  std::string mesh_config;                 // mesh file
  double resolve_interval_seconds = 2;     // of the names in a mesh file
  std::string listen = "127.0.0.1:50051";  // clients
  std::string admin_listen;   // operators, peers for weights; see AdminListen
  std::string health_listen;  // plain; empty: off
  std::string metrics_listen = "127.0.0.1:0";
  std::string ready_file;  // written once every expert is covered
  bool exit_with_parent = false;
  bool shared_memory = true;  // to expert services on this host
  bool lend_weights = true;  // whether hosts without the checkpoint may pull it

  TlsFiles client_tls = {"--client-tls", "", "", ""};
  double client_connection_age_seconds = 0;  // 0: no limit
  std::string client_tokens;  // file of bearer tokens; "": none are asked for
  TlsFiles mesh_tls = {"--mesh-tls", "", "", ""};  // and at admin_listen

  std::string pack_cache;  // folder for packed weights; "": none are kept
  std::string router_dtype = "auto";  // auto, f32, bf16, int8, int4
  std::string kv_dtype = "auto";      // auto, f32, bf16, int8
  std::string wire_dtype = "auto";    // auto, f32, bf16, int8
  // Experts whose outputs are added up first; a number, or all.
  std::string combine_group_size = "1";
  int threads = 0;  // 0: the CPUs at hand

  std::string micro_batches = "auto";  // auto, 1, 2
  int64_t max_step_tokens = 512;       // tokens of one step, decode and prefill
  int64_t max_sequences = 64;          // running at once
  int64_t max_queue = 256;             // requests waiting
  // Of steps that decode, to which prefill adapts; 0: none.
  double target_inter_token_latency_seconds = 0;
  double priority_step_seconds = 10;  // of waiting, worth one priority
  int64_t kv_cache_tokens = 0;        // 0: by kv_cache_bytes
  int64_t kv_cache_bytes = int64_t{1} << 30;
  std::string prefix_cache = "on";  // on, off

  double capacity_factor = 2.0;  // 0: no limit
  int64_t min_capacity = 64;     // rows
  std::string overflow_policy = "wait";
  double max_lost_gate_mass = 0.02;  // of all gate mass; 1: no bound

  // Whether this router places experts; unset: with --experts-at.
  std::optional<bool> control;
  std::string rebalance = "off";  // off, auto
  double load_window_seconds = 30;
  double rebalance_interval_seconds = 10;
  double rebalance_min_improvement = 0.1;  // of the slowest host's time
  int64_t rebalance_windows = 3;           // intervals that must show it
  double rebalance_pause_seconds = 60;
  int64_t rebalance_bytes_per_minute = 0;  // 0: not limited

  bool controls() const { return control.value_or(mesh_config.empty()); }

  bool mix_numerics = false;  // of expert services
  double uncovered_timeout_seconds = 10;
  double hedge_budget = 0.05;  // of batches; 0: none
  double drain_timeout_seconds = 30;

  std::string scaler_listen;  // for KEDA; empty: off
  double scale_target_utilization = 0.7;
  double scale_window_seconds = 30;  // that load is a mean over
  double scale_down_window_seconds = 300;
  std::string trace_file;   // of spans; "": none are written
  double trace_sample = 0;  // of traces, whatever their contexts say
  std::string metrics_expert_detail = "topk";  // off, topk, full
  LogOptions log;
};

// Of --admin-listen, or the default: this host alone, and the port that goes
// with the clients'. Requires a checked config.
std::string AdminListen(const RouterConfig& config);

// Adds a flag for every knob.
void AddRouterOptions(CLI::App& app, RouterConfig* config);

// Errors: INVALID_ARGUMENT naming the flag and what it accepts.
absl::Status CheckRouterConfig(const RouterConfig& config);

// The type a dtype flag stands for: itself, or the checkpoint's activation
// type. f16 checkpoints run in f32: their activations may exceed f16's range.
DType ActivationDType(const std::string& flag, DType checkpoint);

// The type of rows to and from experts that --wire-dtype stands for.
DType WireDType(const RouterConfig& config, DType checkpoint);

// The type of keys and values that --kv-dtype stands for; auto: that of
// activations.
KvFormat RouterKvFormat(const RouterConfig& config, DType activations);

// Experts of one combine group; 0: the flag is neither a number from 1 nor all.
int64_t CombineGroupSize(const RouterConfig& config, int64_t num_experts);

// int8 or int4, where --router-dtype asks for them.
std::optional<WeightFormat> RouterWeightFormat(const RouterConfig& config);

}  // namespace expertmesh::router
