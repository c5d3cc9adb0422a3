#pragma once

// What the requests of a benchmark ask for.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "expertmesh/v1/generation.pb.h"
#include "expertmesh/v1/model.pb.h"
#include "services/cli/length_distribution.h"

namespace expertmesh {

struct RequestOptions {
  LengthDistribution prompt_tokens;
  LengthDistribution output_tokens;
  // The same tokens at the beginning of every prompt, beside prompt_tokens.
  uint32_t shared_prefix_tokens = 0;
  // Asked in turn instead of random tokens, unless empty.
  std::vector<std::string> texts;
  std::optional<float> temperature;  // default: the server's
  v1::OverflowPolicy overflow_policy = v1::OVERFLOW_POLICY_UNSPECIFIED;
  bool exact = false;
  uint64_t seed = 0;
};

// Makes requests by number: the same ones for the same options and vocabulary.
// Thread-safe.
class RequestMaker {
 public:
  RequestMaker(const RequestOptions& options, const v1::Model& model);

  // Errors: INVALID_ARGUMENT where the longest request cannot fit the model's
  // context, or texts meet a model without a tokenizer.
  absl::Status Check() const;

  // Request `index` of a round. Rounds have the same lengths in the same order,
  // but random tokens of their own, so that none finds another's in a cache.
  v1::GenerateRequest Make(uint32_t round, uint64_t index) const;

 private:
  const RequestOptions options_;
  const v1::Model model_;
  std::vector<uint32_t> prefix_;
};

// Lines of a file that are not empty. Errors: INVALID_ARGUMENT naming a line
// that is not UTF-8, or where there is no text at all; NOT_FOUND for no file.
absl::StatusOr<std::vector<std::string>> ReadTexts(const std::string& path);

// A seed for one purpose, made of the benchmark's.
uint64_t DerivedSeed(uint64_t seed, absl::string_view purpose, uint32_t round,
                     uint64_t index);

}  // namespace expertmesh
