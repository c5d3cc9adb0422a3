#include "router_service/engine/step_logits.h"

#include <algorithm>

namespace expertmesh::router {

StepLogits::StepLogits(int64_t vocab_size, Transformer* transformer,
                       WorkerPool* pool)
    : vocab_size_(vocab_size),
      transformer_(*transformer),
      pool_(*pool),
      results_(Transformer::kMaxLogitRows),
      logits_(Transformer::kMaxLogitRows * vocab_size * sizeof(float)),
      original_logits_(pool->num_threads()) {
  for (int i = 0; i < pool->num_threads(); ++i) {
    samplers_.emplace_back(vocab_size);
  }
}

void StepLogits::Collect(absl::Span<const ScheduledChunk> chunks) {
  rows_.clear();
  for (const ScheduledChunk& chunk : chunks) {
    Sequence* sequence = chunk.sequence;
    const int64_t first_position = sequence->num_computed - chunk.num_tokens;
    if (sequence->request.prompt_logprobs) {
      // Position p scores prompt token p + 1; a recomputed prompt has scored
      // some already.
      const int64_t scored =
          static_cast<int64_t>(sequence->prompt_logprobs.size());
      for (int64_t i = std::max<int64_t>(0, scored - first_position);
           i < chunk.num_tokens &&
           first_position + i + 1 < sequence->prompt_size();
           ++i) {
        rows_.push_back({static_cast<int32_t>(chunk.first_token + i), sequence,
                         sequence->request.prompt[first_position + i + 1]});
      }
    }
    if (sequence->num_pending() == 0 && sequence->request.max_tokens > 0) {
      rows_.push_back(
          {static_cast<int32_t>(chunk.first_token + chunk.num_tokens - 1),
           sequence, std::nullopt});
    }
  }
}

void StepLogits::Compute(
    absl::FunctionRef<void(const Row& row, Result& result)> deliver) {
  for (size_t first = 0; first < rows_.size();
       first += Transformer::kMaxLogitRows) {
    const size_t count =
        std::min<size_t>(Transformer::kMaxLogitRows, rows_.size() - first);
    tokens_.clear();
    for (size_t i = 0; i < count; ++i) {
      tokens_.push_back(rows_[first + i].token);
    }
    transformer_.Logits(tokens_, logits_.as<float>());
    const size_t stride = samplers_.size();
    pool_.ParallelFor(
        static_cast<int64_t>(std::min(stride, count)), [&](int64_t sampler) {
          for (size_t i = sampler; i < count; i += stride) {
            float* logits = logits_.as<float>() + i * vocab_size_;
            ComputeRow(rows_[first + i], absl::MakeSpan(logits, vocab_size_),
                       sampler, &results_[i]);
          }
        });
    for (size_t i = 0; i < count; ++i) deliver(rows_[first + i], results_[i]);
    transformer_.times().End(StepPhase::kSampling);
  }
}

void StepLogits::ComputeRow(const Row& row, absl::Span<float> logits,
                            int64_t sampler, Result* result) {
  const Sequence& sequence = *row.sequence;
  const SequenceRequest& request = sequence.request;
  if (row.scored) {
    result->logprob = LogprobOf(logits, *row.scored, *request.prompt_logprobs);
    return;
  }
  SampleContext context;
  context.prompt = request.prompt;
  context.generated = sequence.generated();
  if (sequence.num_generated() < request.min_tokens) {
    context.banned = request.stop_ids;
  }
  // Sampling overwrites the logits; the report is of what the model said.
  std::vector<float>& original = original_logits_[sampler];
  if (request.logprobs) original.assign(logits.begin(), logits.end());
  result->token_id =
      samplers_[sampler].Sample(request.sampling, context, logits);
  if (request.logprobs && result->token_id >= 0) {
    result->logprob = LogprobOf(original, result->token_id, *request.logprobs);
  }
}

}  // namespace expertmesh::router
