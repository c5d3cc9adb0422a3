#include "tests/bench/model_steps.h"

#include <vector>

#include "tests/bench/measure.h"

namespace expertmesh::testing {
namespace {

// `count` tokens from `position` on for each of `num_seqs` sequences, whose
// pages follow one another.
router::TokenBatch MakeBatch(const ModelConfig& config, int64_t num_seqs,
                             int64_t position, int64_t count) {
  constexpr int64_t kPages = kContextTokens / kPageTokens;
  router::TokenBatch batch;
  batch.Clear();
  batch.max_blocks = kPages;
  for (int64_t seq = 0; seq < num_seqs; ++seq) {
    for (int64_t i = position; i < position + count; ++i) {
      batch.token_ids.push_back(
          static_cast<int32_t>((seq * 7919 + i * 104729) % config.vocab_size));
      batch.positions.push_back(static_cast<int32_t>(i));
      batch.slot_mapping.push_back(
          static_cast<int32_t>(seq * kContextTokens + i));
      batch.policy.push_back(router::OverflowPolicy::kWait);
    }
    batch.seq_starts.push_back(static_cast<int32_t>(batch.num_tokens()));
    for (int64_t page = 0; page < kPages; ++page) {
      batch.block_tables.push_back(static_cast<int32_t>(seq * kPages + page));
    }
  }
  return batch;
}

// One step with logits for the last token of every sequence.
void Step(LocalModel* model, const router::TokenBatch& batch,
          router::RoutingObserver* observer, std::vector<float>* logits) {
  model->transformer->Forward(batch, model->cache.get(), observer);
  std::vector<int32_t> rows;
  for (int64_t seq = 1; seq <= batch.num_seqs(); ++seq) {
    rows.push_back(batch.seq_starts[seq] - 1);
  }
  logits->resize(rows.size() * model->config().vocab_size);
  model->transformer->Logits(rows, logits->data());
}

}  // namespace

LocalModelOptions BenchOptions(int64_t max_seqs) {
  LocalModelOptions options;
  options.router_dtype = DType::kBF16;
  options.wire_dtype = DType::kBF16;
  options.max_context_tokens = kContextTokens;
  options.kv_cache_tokens = max_seqs * kContextTokens;
  options.capacity.capacity_factor = 0;
  return options;
}

double PrefillTokensPerSecond(LocalModel* model, int64_t num_seqs,
                              int64_t tokens,
                              router::RoutingObserver* observer) {
  std::vector<float> logits;
  const auto batch = MakeBatch(model->config(), num_seqs, 0, tokens);
  return static_cast<double>(num_seqs * tokens) /
         Seconds([&] { Step(model, batch, observer, &logits); });
}

double DecodeTokensPerSecond(LocalModel* model, int64_t num_seqs, int64_t steps,
                             router::RoutingObserver* observer) {
  std::vector<float> logits;
  constexpr int64_t kStart = 64;  // after a short prompt
  const double seconds = Seconds([&] {
    for (int64_t i = 0; i < steps; ++i) {
      Step(model, MakeBatch(model->config(), num_seqs, kStart + i, 1), observer,
           &logits);
    }
  });
  return static_cast<double>(num_seqs * steps) / seconds;
}

}  // namespace expertmesh::testing
