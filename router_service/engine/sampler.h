#pragma once

// Stop 8: logits → token.

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace expertmesh::router {

// Resolved sampling parameters of one request (no unset fields).
struct SamplingParams {
  float temperature = 0.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;
};

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;
  // The likeliest tokens, descending; ties by lower id.
  std::vector<std::pair<int32_t, float>> top;
};

// What a sampler needs to know of a sequence.
struct SampleContext {
  absl::Span<const int32_t> prompt;     // token ids
  absl::Span<const int32_t> generated;  // token ids so far
  // Ids that must not be sampled now (stop ids before min_tokens).
  absl::Span<const int32_t> banned;
};

// Samples one token. Order of operations, as in transformers: repetition
// penalty, presence and frequency penalties, banned ids, temperature, top-k,
// top-p, min-p, then one draw from a counter-based generator keyed by
// (seed, number of tokens generated so far): the draw depends on nothing else.
// Greedy and every tie go to the lower id. NaN logits never win; where no logit
// is finite returns -1.
// Owns scratch memory; one thread.
class Sampler {
 public:
  explicit Sampler(int64_t vocab_size);

  // `logits` [vocab_size] is overwritten.
  int32_t Sample(const SamplingParams& params, const SampleContext& context,
                 absl::Span<float> logits);

 private:
  std::vector<std::pair<float, int32_t>> candidates_;
  std::vector<int32_t> counts_;
};

// log softmax(logits)[token_id], and of the `num_top` likeliest tokens.
// Reads logits as the model gave them: before temperature and penalties.
TokenLogprob LogprobOf(absl::Span<const float> logits, int32_t token_id,
                       int32_t num_top);

// A uniform number in [0, 1) with 24 bits that is a function of its key
// (Philox-4x32-10: Salmon et al., SC'11).
float CounterUniform(uint64_t seed, uint64_t counter);

}  // namespace expertmesh::router
