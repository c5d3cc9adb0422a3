#pragma once

// Stop 8: logits → token.

#include <cstdint>
#include <utility>
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
  absl::Span<const int32_t> prompt = {};     // token ids
  absl::Span<const int32_t> generated = {};  // token ids so far
  // Ids that must not be sampled now (stop ids before min_tokens).
  absl::Span<const int32_t> banned = {};
};

// Samples one token. Order of operations, as in transformers: repetition
// penalty (prompt and generated tokens), presence and frequency penalties
// (generated tokens), banned ids, temperature, top-k, top-p, min-p, then one
// draw from a counter-based generator keyed by (seed, number of tokens
// generated so far): the draw depends on nothing else, and walks the surviving
// tokens by ascending id.
//   top-p keeps a token where the tokens ahead of it hold less than top_p of
//   the mass (so always one); min-p keeps those of at least min_p times the
//   likeliest one's probability.
// Greedy and every tie go to the lower id. Only finite logits take part; where
// there is none returns -1. Ids of the context outside the vocabulary are
// ignored.
// Owns scratch memory, sized at construction; one thread.
class Sampler {
 public:
  explicit Sampler(int64_t vocab_size);

  // `logits` [vocab_size] is overwritten.
  int32_t Sample(const SamplingParams& params, const SampleContext& context,
                 absl::Span<float> logits);

 private:
  struct Candidate {
    float logit;
    float weight;  // exp((logit - highest logit) / temperature)
    int32_t id;
  };

  void ApplyPenalties(const SamplingParams& params,
                      const SampleContext& context, absl::Span<float> logits);
  // Fills block_max_; returns the highest finite logit, or -inf.
  float FindMaxima(absl::Span<const float> logits);
  // Leaves the likeliest top_k in candidates_, weighed.
  void CollectTopK(absl::Span<const float> logits, int64_t top_k,
                   float temperature);
  // Leaves in candidates_ those that hold top_p of the mass of all tokens, or
  // of candidates_.
  void CollectTopP(absl::Span<const float> logits, float max, float temperature,
                   float top_p);
  void KeepTopP(float top_p);
  struct TopPEdge {
    double target;  // the mass to hold
    double mass;    // of the buckets before the last one kept
    size_t bucket;  // the last one kept
  };
  TopPEdge FindEdge(float top_p) const;
  void CutAtEdge(const TopPEdge& edge);
  int32_t DrawCandidate(float min_weight, float uniform) const;
  int32_t DrawFromAll(absl::Span<const float> logits, float max,
                      float temperature, float min_weight, float uniform);

  std::vector<Candidate> candidates_;   // ascending id
  std::vector<Candidate> selection_;    // any order
  std::vector<double> mass_by_weight_;  // scratch of top-p
  std::vector<int32_t> counts_;         // [vocab_size], zero between calls
  std::vector<float> weights_;          // by id, scratch of top-p
  // Of blocks of ids: the highest finite logit, and the mass before the block.
  std::vector<float> block_max_;
  std::vector<double> mass_before_;
};

// log softmax(logits)[token_id], and of the `num_top` likeliest tokens.
// Reads logits as the model gave them: before temperature and penalties. The
// sum is in double, ascending id. Logits that are not finite count as -inf.
TokenLogprob LogprobOf(absl::Span<const float> logits, int32_t token_id,
                       int32_t num_top);

// A uniform number in [0, 1) with 24 bits that is a function of its key
// (Philox-4x32-10: Salmon et al., SC'11).
float CounterUniform(uint64_t seed, uint64_t counter);

}  // namespace expertmesh::router
