// One token sampled from the logits of a vocabulary of so many, as a language
// model gives them: a wide bulk and some dozens of likely tokens above it.

#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <vector>

#include "router_service/engine/sampler.h"

namespace expertmesh::router {
namespace {

std::vector<float> Logits(int64_t vocab) {
  std::mt19937 generator(1);
  std::normal_distribution<float> bulk(0.0f, 2.5f);
  std::uniform_real_distribution<float> likely(10.0f, 18.0f);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = bulk(generator);
  for (int i = 0; i < 40; ++i) logits[generator() % vocab] = likely(generator);
  return logits;
}

void BM_Sample(benchmark::State& state, SamplingParams params) {
  std::vector<float> logits = Logits(state.range(0));
  Sampler sampler(state.range(0));
  for (auto _ : state) {
    ++params.seed;
    benchmark::DoNotOptimize(
        sampler.Sample(params, {}, absl::MakeSpan(logits)));
  }
}

void BM_Logprob(benchmark::State& state) {
  const std::vector<float> logits = Logits(state.range(0));
  const int32_t num_top = static_cast<int32_t>(state.range(1));
  for (auto _ : state) {
    benchmark::DoNotOptimize(LogprobOf(logits, 7, num_top));
  }
}

void Vocabularies(benchmark::internal::Benchmark* bench) {
  bench->Arg(32000)->Arg(151936);
}

BENCHMARK_CAPTURE(BM_Sample, greedy, SamplingParams{})->Apply(Vocabularies);
BENCHMARK_CAPTURE(BM_Sample, temperature, SamplingParams{.temperature = 1.0f})
    ->Apply(Vocabularies);
BENCHMARK_CAPTURE(BM_Sample, cold, SamplingParams{.temperature = 0.2f})
    ->Apply(Vocabularies);
BENCHMARK_CAPTURE(BM_Sample, min_p,
                  SamplingParams{.temperature = 1.0f, .min_p = 0.05f})
    ->Apply(Vocabularies);
BENCHMARK_CAPTURE(BM_Sample, top_p,
                  SamplingParams{.temperature = 0.8f, .top_p = 0.95f})
    ->Apply(Vocabularies);
BENCHMARK_CAPTURE(BM_Sample, top_k_50,
                  SamplingParams{.temperature = 0.8f, .top_k = 50})
    ->Apply(Vocabularies);
BENCHMARK_CAPTURE(BM_Sample, top_k_20_top_p,
                  SamplingParams{
                      .temperature = 0.6f, .top_k = 20, .top_p = 0.95f})
    ->Apply(Vocabularies);
BENCHMARK(BM_Logprob)->ArgsProduct({{32000, 151936}, {0, 20}});

}  // namespace
}  // namespace expertmesh::router
