#include "router_service/engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "router_service/engine/logit_blocks.h"
#include "router_service/engine/philox.h"

namespace expertmesh::router {
namespace {

// Higher logit first; of equal logits the lower id.
constexpr auto kLikelier = [](const auto& a, const auto& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
};

constexpr auto kLowerId = [](const auto& a, const auto& b) {
  return a.id < b.id;
};

// Which of 32 buckets to an octave a weight of 0 to 1 falls in; monotonic.
size_t WeightBucket(float weight) {
  return std::bit_cast<uint32_t>(weight) >> 18;
}

float BucketStart(size_t bucket) {
  return std::bit_cast<float>(static_cast<uint32_t>(bucket) << 18);
}

// Whether none of kLanes logits exceeds the threshold.
bool NoneAbove(float threshold, const float* logits) {
  int above = 0;
  for (size_t j = 0; j < kLanes; ++j) above |= logits[j] > threshold;
  return above == 0;
}

// Leaves in `selection` the `top_k` likeliest tokens (fewer where fewer are
// finite), in any order. One pass: a buffer of twice top_k is cut back by
// selection whenever it is full, so the cost is linear for every top_k.
template <typename Candidate>
void SelectTopK(absl::Span<const float> logits, size_t top_k,
                std::vector<Candidate>& selection) {
  const auto cut = [&] {
    std::nth_element(selection.begin(), selection.begin() + (top_k - 1),
                     selection.end(), kLikelier);
    selection.resize(top_k);
  };
  selection.clear();
  if (top_k == 0) return;
  float threshold = -kInfinity;  // what a further token must exceed
  const auto consider = [&](size_t id) {
    if (!(logits[id] > threshold) || logits[id] == kInfinity) return;
    Candidate candidate{};
    candidate.logit = logits[id];
    candidate.id = static_cast<int32_t>(id);
    selection.push_back(candidate);
    if (selection.size() < 2 * top_k) return;
    cut();
    // Later ids lose ties, so they must exceed the last one kept.
    threshold = selection.back().logit;
  };
  size_t first = 0;
  for (; first + kLanes <= logits.size(); first += kLanes) {
    // Holds for nearly all blocks once the buffer has been cut.
    if (NoneAbove(threshold, logits.data() + first)) continue;
    for (size_t j = 0; j < kLanes; ++j) consider(first + j);
  }
  for (; first < logits.size(); ++first) consider(first);
  if (selection.size() > top_k) cut();
}

// The token of the highest finite logit, the lower id of two; -1: none.
int32_t ArgMax(absl::Span<const float> logits) {
  float max = -kInfinity;
  size_t first = 0;  // of the block that has it
  for (size_t block = 0; block < NumBlocks(logits.size()); ++block) {
    const float highest = MaxFinite(BlockOf(logits, block));
    if (highest > max) {
      max = highest;
      first = block * kBlock;
    }
  }
  if (max == -kInfinity) return -1;
  return static_cast<int32_t>(
      std::find(logits.begin() + first, logits.end(), max) - logits.begin());
}

}  // namespace

Sampler::Sampler(int64_t vocab_size)
    : mass_by_weight_(WeightBucket(1.0f) + 1),
      counts_(vocab_size, 0),
      weights_(NumBlocks(vocab_size) * kBlock),
      block_max_(NumBlocks(vocab_size)),
      mass_before_(NumBlocks(vocab_size)) {
  candidates_.reserve(vocab_size);
  selection_.reserve(vocab_size);
}

int32_t Sampler::Sample(const SamplingParams& params,
                        const SampleContext& context,
                        absl::Span<float> logits) {
  ApplyPenalties(params, context, logits);
  for (const int32_t id : context.banned) {
    if (id >= 0 && static_cast<size_t>(id) < logits.size()) {
      logits[id] = -kInfinity;
    }
  }
  if (!(params.temperature > 0)) return ArgMax(logits);

  // Dividing the difference, not the logit, cannot overflow to +inf; a finite
  // temperature cannot give NaN.
  const float temperature =
      std::min(params.temperature, std::numeric_limits<float>::max());
  // The likeliest token has weight 1 and always stays.
  const float min_weight =
      params.min_p > 0 ? std::min(params.min_p, 1.0f) : 0.0f;
  const float uniform = CounterUniform(params.seed, context.generated.size());
  if (params.top_k > 0 && params.top_k < static_cast<int64_t>(logits.size())) {
    CollectTopK(logits, params.top_k, temperature);
    if (params.top_p < 1.0f && !candidates_.empty()) KeepTopP(params.top_p);
    return DrawCandidate(min_weight, uniform);
  }
  const float max = FindMaxima(logits);
  if (max == -kInfinity) return -1;
  if (params.top_p < 1.0f) {
    CollectTopP(logits, max, temperature, params.top_p);
    return DrawCandidate(min_weight, uniform);
  }
  return DrawFromAll(logits, max, temperature, min_weight, uniform);
}

void Sampler::ApplyPenalties(const SamplingParams& params,
                             const SampleContext& context,
                             absl::Span<float> logits) {
  const auto known = [&](int32_t id) {
    return id >= 0 && static_cast<size_t>(id) < logits.size();
  };
  if (params.repetition_penalty != 1.0f) {
    const std::array<absl::Span<const int32_t>, 2> parts = {context.prompt,
                                                            context.generated};
    for (const auto part : parts) {
      for (const int32_t id : part) {
        if (!known(id) || counts_[id]++ > 0) continue;
        logits[id] = logits[id] < 0 ? logits[id] * params.repetition_penalty
                                    : logits[id] / params.repetition_penalty;
      }
    }
    for (const auto part : parts) {
      for (const int32_t id : part) {
        if (known(id)) counts_[id] = 0;
      }
    }
  }
  if (params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f) {
    for (const int32_t id : context.generated) {
      if (known(id)) ++counts_[id];
    }
    for (const int32_t id : context.generated) {
      if (!known(id) || counts_[id] == 0) continue;
      logits[id] -= params.presence_penalty +
                    params.frequency_penalty * static_cast<float>(counts_[id]);
      counts_[id] = 0;
    }
  }
}

float Sampler::FindMaxima(absl::Span<const float> logits) {
  float max = -kInfinity;
  for (size_t block = 0; block < NumBlocks(logits.size()); ++block) {
    block_max_[block] = MaxFinite(BlockOf(logits, block));
    max = std::max(max, block_max_[block]);
  }
  return max;
}

void Sampler::CollectTopK(absl::Span<const float> logits, int64_t top_k,
                          float temperature) {
  SelectTopK(logits, top_k, selection_);
  std::sort(selection_.begin(), selection_.end(), kLowerId);
  candidates_.assign(selection_.begin(), selection_.end());
  float max = -kInfinity;
  for (const Candidate& c : candidates_) max = std::max(max, c.logit);
  std::array<float, kBlock> block;
  for (size_t first = 0; first < candidates_.size(); first += kBlock) {
    const size_t count = std::min(kBlock, candidates_.size() - first);
    for (size_t i = 0; i < count; ++i) block[i] = candidates_[first + i].logit;
    Weigh({block.data(), count}, max, temperature, block.data());
    for (size_t i = 0; i < count; ++i) candidates_[first + i].weight = block[i];
  }
}

// Linear, whatever the distribution, and without a full sort: a histogram of
// mass by weight finds the bucket in which the last kept token lies, and
// halving the bucket by selection finds the token.
void Sampler::KeepTopP(float top_p) {
  std::fill(mass_by_weight_.begin(), mass_by_weight_.end(), 0.0);
  for (const Candidate& c : candidates_) {
    mass_by_weight_[WeightBucket(c.weight)] += c.weight;
  }
  CutAtEdge(FindEdge(top_p));
}

// As KeepTopP of all tokens, of which only those that may stay become
// candidates.
void Sampler::CollectTopP(absl::Span<const float> logits, float max,
                          float temperature, float top_p) {
  std::fill(mass_by_weight_.begin(), mass_by_weight_.end(), 0.0);
  const size_t num_blocks = NumBlocks(logits.size());
  const auto has_weight = [&](size_t block) {
    return (block_max_[block] - max) / temperature > kNoWeight;
  };
  for (size_t block = 0; block < num_blocks; ++block) {
    if (!has_weight(block)) continue;
    const absl::Span<const float> part = BlockOf(logits, block);
    float* weights = &weights_[block * kBlock];
    Weigh(part, max, temperature, weights);
    std::fill(weights + part.size(), weights + kBlock, 0.0f);
    for (size_t i = 0; i < part.size(); ++i) {
      mass_by_weight_[WeightBucket(weights[i])] += weights[i];
    }
  }
  const TopPEdge edge = FindEdge(top_p);
  // A bucket more than is kept: but for its rounding a weight falls with its
  // logit.
  const float below =
      std::nextafter(BucketStart(std::max<size_t>(edge.bucket, 1) - 1), -1.0f);
  candidates_.clear();
  for (size_t block = 0; block < num_blocks; ++block) {
    if (!has_weight(block)) continue;
    const size_t end = std::min(logits.size(), (block + 1) * kBlock);
    for (size_t id = block * kBlock; id < end; ++id) {
      if (id % kLanes == 0 && NoneAbove(below, &weights_[id])) {
        id += kLanes - 1;
        continue;
      }
      if (!(weights_[id] > below) || !std::isfinite(logits[id])) continue;
      candidates_.push_back(
          {logits[id], weights_[id], static_cast<int32_t>(id)});
    }
  }
  CutAtEdge(edge);
}

Sampler::TopPEdge Sampler::FindEdge(float top_p) const {
  // Summed in the order of the search below, so that the search ends.
  double total = 0;
  for (size_t b = mass_by_weight_.size(); b-- > 0;) total += mass_by_weight_[b];
  TopPEdge edge = {top_p * total, 0, mass_by_weight_.size() - 1};
  while (edge.mass + mass_by_weight_[edge.bucket] < edge.target) {
    edge.mass += mass_by_weight_[edge.bucket--];
  }
  return edge;
}

void Sampler::CutAtEdge(const TopPEdge& edge) {
  selection_.clear();
  for (const Candidate& c : candidates_) {
    if (WeightBucket(c.weight) == edge.bucket) selection_.push_back(c);
  }
  // Of the bucket's tokens by descending likelihood, those up to `first` are
  // kept and those from `last` on are cut.
  double mass = edge.mass;
  size_t first = 0;
  size_t last = selection_.size();
  while (last - first > 1) {
    const size_t middle = first + (last - first) / 2;
    std::nth_element(selection_.begin() + first, selection_.begin() + middle,
                     selection_.begin() + last, kLikelier);
    double half = 0;
    for (size_t i = first; i < middle; ++i) half += selection_[i].weight;
    if (mass + half < edge.target) {
      mass += half;
      first = middle;
    } else {
      last = middle;
    }
  }
  const Candidate last_kept = selection_[first];
  std::erase_if(candidates_, [&last_kept](const Candidate& c) {
    return kLikelier(last_kept, c);
  });
}

int32_t Sampler::DrawCandidate(float min_weight, float uniform) const {
  double total = 0;
  for (const Candidate& c : candidates_) {
    if (c.weight >= min_weight) total += c.weight;
  }
  const double target = total * uniform;
  double sum = 0;
  int32_t sampled = -1;
  for (const Candidate& c : candidates_) {
    if (!(c.weight >= min_weight)) continue;
    sum += c.weight;
    sampled = c.id;
    if (sum > target) break;
  }
  return sampled;
}

// Adds the weights by ascending id and notes the sums in between, so that the
// drawn token is found without adding them again.
int32_t Sampler::DrawFromAll(absl::Span<const float> logits, float max,
                             float temperature, float min_weight,
                             float uniform) {
  // Of blocks all of whose weights are below, with room for their rounding.
  const float least =
      min_weight > 1e-30f ? std::log(min_weight) - 0.01f : kNoWeight;
  std::array<float, kBlock> weights;
  const auto weigh = [&](absl::Span<const float> block) {
    Weigh(block, max, temperature, weights.data());
    if (min_weight == 0) return;
    for (float& weight : weights) weight = weight >= min_weight ? weight : 0;
  };
  const size_t num_blocks = NumBlocks(logits.size());
  double total = 0;
  for (size_t block = 0; block < num_blocks; ++block) {
    mass_before_[block] = total;
    if (!((block_max_[block] - max) / temperature > least)) continue;
    const absl::Span<const float> part = BlockOf(logits, block);
    weigh(part);
    for (size_t i = 0; i < part.size(); ++i) total += weights[i];
  }
  const double target = total * uniform;
  // The last block before which there is no more mass than that has the token:
  // the sum exceeds the target only with a weight.
  size_t block = 0;
  for (size_t b = 1; b < num_blocks; ++b) {
    if (mass_before_[b] <= target) block = b;
  }
  const absl::Span<const float> part = BlockOf(logits, block);
  weigh(part);
  double sum = mass_before_[block];
  for (size_t i = 0; i < part.size(); ++i) {
    sum += weights[i];
    if (sum > target) return static_cast<int32_t>(block * kBlock + i);
  }
  return -1;  // not reached: the likeliest token's weight is 1
}

TokenLogprob LogprobOf(absl::Span<const float> logits, int32_t token_id,
                       int32_t num_top) {
  const float max = MaxFinite(logits);
  double sum = 0;
  std::array<float, kBlock> weights;
  for (size_t block = 0; block < NumBlocks(logits.size()); ++block) {
    const absl::Span<const float> part = BlockOf(logits, block);
    Weigh(part, max, /*temperature=*/1.0f, weights.data());
    for (size_t i = 0; i < part.size(); ++i) sum += weights[i];
  }
  const double log_sum = std::log(sum);
  const auto logprob = [&](float logit) {
    if (!std::isfinite(logit)) return -kInfinity;
    return static_cast<float>(static_cast<double>(logit) - max - log_sum);
  };

  TokenLogprob result;
  result.token_id = token_id;
  result.logprob = logprob(logits[token_id]);
  struct Likely {
    float logit;
    int32_t id;
  };
  std::vector<Likely> likely;
  SelectTopK(logits, std::max(num_top, 0), likely);
  std::sort(likely.begin(), likely.end(), kLikelier);
  for (const Likely& token : likely) {
    result.top.emplace_back(token.id, logprob(token.logit));
  }
  return result;
}

float CounterUniform(uint64_t seed, uint64_t counter) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  const std::array<uint32_t, 4> random =
      Philox4x32({low(counter), high(counter), 0, 0}, {low(seed), high(seed)});
  return static_cast<float>(random[0] >> 8) * 0x1p-24f;
}

}  // namespace expertmesh::router
