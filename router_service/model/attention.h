#pragma once

// Stop 3: paged attention.

#include <cstdint>

#include "router_service/model/activations.h"
#include "router_service/model/dense_weights.h"
#include "router_service/model/kv_cache.h"
#include "router_service/model/rope.h"
#include "router_service/model/token_batch.h"
#include "services/checkpoint/model_config.h"

namespace expertmesh::router {

// Attention of one layer over the keys and values of each token's sequence.
// A token's result is a function of its own sequence: keys are reduced in fixed
// absolute blocks, and work is split over heads and queries, never over keys.
// Owns its workspace; one thread calls it.
class Attention {
 public:
  Attention(const ModelConfig& config, const ActivationType& type,
            int64_t max_tokens, int64_t max_context_tokens);

  // Writes the batch's keys and values into the cache, then attends.
  //   x  [num_tokens, hidden] normed
  //   y  [num_tokens, hidden] f32, overwritten
  void Run(int64_t layer, const AttentionWeights& weights,
           const TokenBatch& batch, const ActivationView& x, KvCache* cache,
           float* y, WorkerPool& pool);

 private:
  // Bias, clamp, norm and rotation of one token's projections, in place.
  void PrepareToken(const AttentionWeights& weights, int64_t position,
                    float* qkv) const;
  void NormHeads(const std::vector<float>& weight, int64_t num_heads,
                 float* heads) const;
  // One KV head of up to kQueriesPerTask tokens of one sequence.
  void AttendTask(int64_t layer, const TokenBatch& batch, int64_t seq,
                  int64_t first_token, int64_t last_token, int64_t kv_head,
                  const KvCache& cache);

  struct Task {
    int32_t seq;
    int32_t first_token;
    int32_t last_token;
  };

  const ModelConfig& config_;
  const int64_t qkv_size_;
  const float scale_;
  RopeTable rope_;
  Buffer qkv_;       // [max_tokens, q + k + v] f32
  Buffer attended_;  // [max_tokens, q] f32
  MatmulInput o_input_;
  std::vector<Task> tasks_;
};

}  // namespace expertmesh::router
