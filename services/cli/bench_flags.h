#pragma once

// The flags of `bench`, and what they ask for.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/cli/bench_load.h"
#include "services/cli/bench_requests.h"
#include "services/cli/client.h"

namespace expertmesh {

struct BenchFlags {
  ServerFlags server;
  std::vector<uint32_t> concurrency;
  std::vector<double> request_rates;
  std::optional<uint64_t> requests;
  std::optional<double> duration_seconds;
  uint64_t warmup = 4;
  std::string prompt_tokens = "128";
  std::string output_tokens = "64";
  uint32_t shared_prefix_tokens = 0;
  std::string prompts_file;
  std::optional<float> temperature;
  std::string overflow_policy;
  bool exact = false;
  uint64_t seed = 1;
  CLI::Option* json = nullptr;  // counts how often it was given
  std::string json_file;
  bool allow_failures = false;
};

void AddBenchFlags(CLI::App& app, BenchFlags& flags);

// One for each value of --concurrency or --request-rate; without either, one
// request at a time. Errors: INVALID_ARGUMENT for a level that would not end.
absl::StatusOr<std::vector<LoadLevel>> BenchLevels(const BenchFlags& flags);

// Errors: those of ReadTexts.
absl::StatusOr<RequestOptions> BenchRequestOptions(const BenchFlags& flags);

}  // namespace expertmesh
