#pragma once

// The flags of `generate`, one for each field of a GenerateRequest.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "expertmesh/v1/generation.pb.h"

namespace expertmesh {

// Unset ones are left to the server.
struct GenerateFlags {
  std::optional<std::string> prompt;
  std::optional<std::string> token_ids;
  std::string request_id;
  std::optional<uint32_t> max_tokens;
  std::optional<uint32_t> min_tokens;
  std::optional<float> temperature;
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::optional<std::string> stop_ids;
  bool ignore_eos = false;
  std::optional<uint32_t> logprobs;
  std::optional<uint32_t> prompt_logprobs;
  std::string overflow_policy;
  bool exact = false;
  int32_t priority = 0;
};

void AddGenerateFlags(CLI::App& app, GenerateFlags& flags);

// --overflow-policy and --exact, which Score takes as well.
void AddOverflowFlags(CLI::App& app, std::string& policy, bool& exact);
// --priority, likewise.
void AddPriorityFlag(CLI::App& app, int32_t& priority);
// "wait", "next_best", "drop"; anything else: UNSPECIFIED.
v1::OverflowPolicy OverflowPolicyOf(const std::string& name);

// The request, without a prompt where the flags give none.
// Requires: checked flags.
v1::GenerateRequest MakeGenerateRequest(const GenerateFlags& flags);

}  // namespace expertmesh
