#pragma once

// Comparison of a router with recorded outputs of the reference implementation.

#include <string>

#include "tests/support/golden_file.h"
#include "tests/support/local_model.h"

namespace expertmesh::testing {

// Every folder of tests/golden holds this many prompts.
inline constexpr int kNumGoldenPrompts = 4;

// Expects, for one prompt: prefill logits within 2e-4 absolute and relative,
// the gate's choices and the greedy continuation equal.
void ExpectEqualToGolden(LocalModel* model, const GoldenFile& golden,
                         int prompt_index);

// The same for every prompt of a folder's golden.safetensors.
void ExpectEqualToGolden(LocalModel* model, const std::string& directory);

}  // namespace expertmesh::testing
