#pragma once

// Every knob of the expert service: unit, default, check.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "expert_service/device/device_choice.h"
#include "services/linalg/weight_format.h"
#include "services/runtime/command_line.h"

namespace expertmesh::expert {

struct ExpertConfig {
  std::string model;    // checkpoint folder
  std::string experts;  // "0-3,7,17@3"; "": all; "none"
  // Peers to pull tensors from, HOST:PORT, by commas; used where `model` is no
  // folder.
  std::string weights_from;
  std::string weights_cache;                    // folder for what was pulled
  double weights_wait_seconds = 600;            // for peers, at start
  uint64_t weights_rate_limit_bytes_per_s = 0;  // 0: none
  std::string pack_cache;  // folder for packed weights; "": none are kept
  // What expert weights may take; 0: no limit.
  uint64_t memory_budget_bytes = 0;
  std::string listen = "127.0.0.1:0";  // routers
  std::string health_listen;           // plain; empty: off
  std::string metrics_listen = "127.0.0.1:0";
  std::string ready_file;  // written once serving
  bool exit_with_parent = false;
  bool shared_memory = true;  // with routers on this host
  TlsFiles mesh_tls = {"--mesh-tls", "", "", ""};

  std::string expert_dtype = "auto";  // auto, f32, bf16, int8, int4
  int threads = 0;                    // 0: the CPUs at hand

  std::string device = "auto";         // auto, cpu, cuda, cuda:N
  std::string numerics = "invariant";  // invariant, fast
  // Of a CUDA device's memory, for weights and workspaces.
  double device_memory_fraction = 0.9;

  int64_t max_batch_rows = 2048;  // of one kernel call; sizes the workspace
  int64_t queue_rows = 16384;     // waiting; more are refused

  int64_t max_streams = 256;  // of routers; more are refused
  uint64_t max_bytes_in_flight = uint64_t{1} << 30;  // batches and replies

  double drain_timeout_seconds = 10;
  std::string trace_file;                      // of spans; "": none are written
  std::string metrics_expert_detail = "topk";  // off, topk, full
  LogOptions log;
};

// Adds a flag for every knob.
void AddExpertOptions(CLI::App& app, ExpertConfig* config);

// Errors: INVALID_ARGUMENT naming the flag and what it accepts.
absl::Status CheckExpertConfig(const ExpertConfig& config);

// The addresses of --weights-from.
std::vector<std::string> WeightPeerAddresses(const ExpertConfig& config);

// The type weights are held in; nothing for "auto": as the checkpoint has them.
// Requires a checked config.
std::optional<WeightFormat> ExpertWeightFormat(const ExpertConfig& config);

// That of --device. Requires a checked config.
DeviceWish ExpertDeviceWish(const ExpertConfig& config);

// That of --numerics. Requires a checked config.
Numerics ExpertNumerics(const ExpertConfig& config);

}  // namespace expertmesh::expert
