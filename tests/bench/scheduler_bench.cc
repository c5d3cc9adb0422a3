// What a step costs before it begins: choosing its tokens and filling the
// batch.

#include <benchmark/benchmark.h>

#include "router_service/engine/scheduler.h"

namespace expertmesh::router {
namespace {

constexpr int64_t kContextTokens = 1000;
constexpr int64_t kPromptTokens = 8192;
constexpr int64_t kStepTokens = 512;

std::unique_ptr<Sequence> MakeSequence(uint64_t id, int64_t size) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->request.prompt.assign(size, static_cast<int32_t>(id));
  sequence->tokens = sequence->request.prompt;
  return sequence;
}

// Decoding requests, each with a context of 1,000 tokens, and where `range(1)`
// says so as much prefill as fills the step, of one long prompt after another.
void BM_Schedule(benchmark::State& state) {
  const int64_t num_decodes = state.range(0);
  SchedulerOptions options;
  options.max_step_tokens = kStepTokens;
  options.max_sequences = num_decodes + 1;
  KvPages pages(1 << 17, /*keeps_prefixes=*/true);
  Scheduler scheduler(options, &pages);
  TokenBatch batch;
  std::vector<ScheduledChunk> chunks;
  for (int64_t id = 0; id < num_decodes; ++id) {
    scheduler.Add(MakeSequence(id, kContextTokens));
  }
  const auto step = [&] {
    scheduler.Schedule(&batch, &chunks);
    for (const ScheduledChunk& chunk : chunks) {
      scheduler.Advance(chunk, chunk.num_tokens);
      if (chunk.sequence->num_pending() == 0) {
        chunk.sequence->tokens.push_back(0);
      }
    }
  };
  do {
    step();
  } while (batch.num_tokens() != num_decodes);
  uint64_t prompt = num_decodes;
  if (state.range(1) != 0) scheduler.Add(MakeSequence(prompt, kPromptTokens));
  for (auto _ : state) {
    step();
    const Sequence* last = chunks.back().sequence;
    if (last->id == prompt && last->num_pending() < 2 * kStepTokens) {
      scheduler.Remove(prompt);
      scheduler.Add(MakeSequence(++prompt, kPromptTokens));
    }
  }
  state.counters["tokens"] = static_cast<double>(batch.num_tokens());
}
BENCHMARK(BM_Schedule)
    ->ArgNames({"decodes", "prefill"})
    ->ArgsProduct({{1, 64, 256}, {0, 1}})
    ->Iterations(2000)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace expertmesh::router
