#pragma once

// One engine step as flat arrays. Built by the scheduler, read-only below.

#include <cstdint>
#include <vector>

#include "router_service/dispatch/routing.h"
#include "router_service/dispatch/traced_tokens.h"

namespace expertmesh::router {

// Tokens of all sequences one after the other; within a sequence by ascending
// position. Sequences that decode come before those that prefill.
struct TokenBatch {
  std::vector<int32_t> token_ids;      // [num_tokens]
  std::vector<int32_t> positions;      // [num_tokens] absolute, from 0
  std::vector<int32_t> slot_mapping;   // [num_tokens] KV slot: page, offset
  std::vector<int32_t> seq_starts;     // [num_seqs + 1] offsets into tokens
  std::vector<int32_t> block_tables;   // [num_seqs, max_blocks] KV pages
  int32_t max_blocks = 0;              // stride of block_tables
  std::vector<OverflowPolicy> policy;  // [num_tokens]
  // [num_tokens], or empty: none; whether rows may go to expert services of any
  // numerics_id.
  std::vector<uint8_t> may_mix;
  std::vector<TracedTokens> traced;  // ascending; of few requests, or none

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_seqs() const {
    return static_cast<int64_t>(seq_starts.size()) - 1;
  }
  void Clear() {
    token_ids.clear();
    positions.clear();
    slot_mapping.clear();
    seq_starts.assign(1, 0);
    block_tables.clear();
    policy.clear();
    may_mix.clear();
    traced.clear();
  }
};

}  // namespace expertmesh::router
