#pragma once

// The logits of a step, and what comes of them.

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "router_service/engine/sampler.h"
#include "router_service/engine/scheduler.h"
#include "router_service/model/transformer.h"
#include "services/core/worker_pool.h"
#include "services/linalg/buffer.h"

namespace expertmesh::router {

// A row of logits is computed where a sequence samples its next token, or has
// a token of its prompt scored. One thread.
class StepLogits {
 public:
  struct Row {
    int32_t token;  // index into the batch
    Sequence* sequence;
    std::optional<int32_t> scored;  // prompt token; empty: the row is sampled
  };
  struct Result {
    int32_t token_id = 0;  // sampled; -1 where no logit is finite
    TokenLogprob logprob;  // of the scored token, or as the request asks
  };

  // Both must outlive this.
  StepLogits(int64_t vocab_size, Transformer* transformer, WorkerPool* pool);

  // Finds the rows that chunks need which the step has moved on.
  void Collect(absl::Span<const ScheduledChunk> chunks);

  // Computes them, some at a time, and hands the results over in the order of
  // chunks and tokens.
  void Compute(absl::FunctionRef<void(const Row& row, Result& result)> deliver);

 private:
  // By the sampler of one thread.
  void ComputeRow(const Row& row, absl::Span<float> logits, int64_t sampler,
                  Result* result);

  const int64_t vocab_size_;
  Transformer& transformer_;
  WorkerPool& pool_;
  std::vector<Row> rows_;
  std::vector<int32_t> tokens_;
  std::vector<Result> results_;
  Buffer logits_;  // [Transformer::kMaxLogitRows, vocab_size] f32
  std::vector<Sampler> samplers_;  // one per thread of the pool
  // Per sampler: logits as the model gave them, for log-probabilities.
  std::vector<std::vector<float>> original_logits_;
};

}  // namespace expertmesh::router
