#include "router_service/engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "router_service/engine/philox.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Logits looked at together, so that the compiler can use vector instructions.
constexpr size_t kLanes = 16;

// Numbers that go through Exp at once.
constexpr size_t kBlock = 256;

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

// The highest finite logit, or -inf.
float MaxFinite(absl::Span<const float> logits) {
  // A maximum has the same value in any order.
  std::array<float, kLanes> max;
  max.fill(-kInfinity);
  const auto visit = [](float x, float& lane) {
    const float finite = x < kInfinity ? x : -kInfinity;  // NaN: false
    lane = finite > lane ? finite : lane;
  };
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) visit(logits[i + j], max[j]);
  }
  for (; i < logits.size(); ++i) visit(logits[i], max[0]);
  return *std::max_element(max.begin(), max.end());
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

}  // namespace

Sampler::Sampler(int64_t vocab_size)
    : mass_by_weight_(WeightBucket(1.0f) + 1), counts_(vocab_size, 0) {
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
  const float max = MaxFinite(logits);
  if (max == -kInfinity) return -1;
  if (!(params.temperature > 0)) {
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), max) -
                                logits.begin());
  }

  if (params.top_k > 0 && params.top_k < static_cast<int64_t>(logits.size())) {
    CollectTopK(logits, params.top_k);
  } else {
    CollectAll(logits);
  }
  WeighCandidates(max, params.temperature);
  if (params.top_p < 1.0f) KeepTopP(params.top_p);
  // The likeliest token has weight 1 and always stays.
  const float min_weight =
      params.min_p > 0 ? std::min(params.min_p, 1.0f) : 0.0f;
  double total = 0;
  for (const Candidate& c : candidates_) {
    if (c.weight >= min_weight) total += c.weight;
  }
  const double target =
      total * CounterUniform(params.seed, context.generated.size());
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

void Sampler::WeighCandidates(float max, float temperature) {
  // Dividing the difference, not the logit, cannot overflow to +inf; a finite
  // temperature cannot give NaN.
  temperature = std::min(temperature, std::numeric_limits<float>::max());
  std::array<float, kBlock> block;
  for (size_t first = 0; first < candidates_.size(); first += kBlock) {
    const size_t count = std::min(kBlock, candidates_.size() - first);
    for (size_t i = 0; i < count; ++i) {
      block[i] = (candidates_[first + i].logit - max) / temperature;
    }
    Exp(block.data(), static_cast<int64_t>(count), block.data());
    for (size_t i = 0; i < count; ++i) candidates_[first + i].weight = block[i];
  }
}

void Sampler::CollectAll(absl::Span<const float> logits) {
  candidates_.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    if (!std::isfinite(logits[id])) continue;
    candidates_.push_back({logits[id], 0.0f, static_cast<int32_t>(id)});
  }
}

void Sampler::CollectTopK(absl::Span<const float> logits, int64_t top_k) {
  SelectTopK(logits, top_k, selection_);
  std::sort(selection_.begin(), selection_.end(), kLowerId);
  candidates_.assign(selection_.begin(), selection_.end());
}

// Linear, whatever the distribution, and without a full sort: a histogram of
// mass by weight finds the bucket in which the last kept token lies, and
// halving the bucket by selection finds the token.
void Sampler::KeepTopP(float top_p) {
  for (double& mass : mass_by_weight_) mass = 0;
  for (const Candidate& c : candidates_) {
    mass_by_weight_[WeightBucket(c.weight)] += c.weight;
  }
  // Summed in the order of the search below, so that the search ends.
  double total = 0;
  for (size_t b = mass_by_weight_.size(); b-- > 0;) total += mass_by_weight_[b];
  const double target = top_p * total;
  double mass = 0;  // of the tokens known to be kept
  size_t bucket = mass_by_weight_.size() - 1;
  while (mass + mass_by_weight_[bucket] < target) {
    mass += mass_by_weight_[bucket--];
  }
  selection_.clear();
  for (const Candidate& c : candidates_) {
    if (WeightBucket(c.weight) == bucket) selection_.push_back(c);
  }

  // Of the bucket's tokens by descending likelihood, those up to `first` are
  // kept and those from `last` on are cut.
  size_t first = 0;
  size_t last = selection_.size();
  while (last - first > 1) {
    const size_t middle = first + (last - first) / 2;
    std::nth_element(selection_.begin() + first, selection_.begin() + middle,
                     selection_.begin() + last, kLikelier);
    double half = 0;
    for (size_t i = first; i < middle; ++i) half += selection_[i].weight;
    if (mass + half < target) {
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

TokenLogprob LogprobOf(absl::Span<const float> logits, int32_t token_id,
                       int32_t num_top) {
  const float max = MaxFinite(logits);
  double sum = 0;
  std::array<float, kBlock> block;
  for (size_t first = 0; first < logits.size(); first += kBlock) {
    const size_t count = std::min(kBlock, logits.size() - first);
    for (size_t i = 0; i < count; ++i) {
      const float logit = logits[first + i];
      block[i] = std::isfinite(logit) ? logit - max : -kInfinity;
    }
    Exp(block.data(), static_cast<int64_t>(count), block.data());
    for (size_t i = 0; i < count; ++i) sum += block[i];
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
