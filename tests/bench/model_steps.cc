#include "tests/bench/model_steps.h"

#include <cstdio>
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

LocalModelOptions BenchOptions(int64_t max_seqs,
                               std::optional<WeightFormat> format) {
  LocalModelOptions options;
  // As the router's --router-dtype.
  options.router_dtype =
      format && IsQuantized(*format) ? DType::kF32 : DType::kBF16;
  options.router_format = options.expert_format = format;
  options.kv_format = KvFormat::kBF16;
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

namespace {

using Measure = std::function<double(LocalModel*)>;

void Compare(const char* name, const std::vector<Contender>& contenders,
             int rounds, const Measure& measure) {
  std::vector<std::vector<double>> speeds(contenders.size());
  std::vector<std::vector<double>> ratios(contenders.size());
  for (const Contender& contender : contenders) measure(contender.model);
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < contenders.size(); ++i) {
      speeds[i].push_back(measure(contenders[i].model));
      ratios[i].push_back(speeds[0].back() / speeds[i].back());
    }
  }
  std::printf("%-12s", name);
  for (const auto& own : speeds) std::printf("%15.1f", Median(own));
  for (size_t i = 1; i < ratios.size(); ++i) {
    std::printf("%15.2f", Median(ratios[i]));
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

void CompareSpeeds(const std::vector<Contender>& contenders, int rounds) {
  std::printf("%-12s", "tokens/s");
  for (const Contender& one : contenders) std::printf("%15s", one.name.c_str());
  for (size_t i = 1; i < contenders.size(); ++i) {
    std::printf("%15s", ("1st / " + contenders[i].name).c_str());
  }
  std::printf("\n");
  const struct {
    const char* name;
    Measure measure;
  } rows[] = {
      {"prefill 512",
       [](LocalModel* m) { return PrefillTokensPerSecond(m, 1, 512); }},
      {"prefill x16",
       [](LocalModel* m) { return PrefillTokensPerSecond(m, 16, 32); }},
      {"decode x1",
       [](LocalModel* m) { return DecodeTokensPerSecond(m, 1, 16); }},
      {"decode x16",
       [](LocalModel* m) { return DecodeTokensPerSecond(m, 16, 8); }},
      {"decode x32",
       [](LocalModel* m) { return DecodeTokensPerSecond(m, 32, 8); }},
  };
  for (const auto& row : rows) {
    Compare(row.name, contenders, rounds, row.measure);
  }
}

}  // namespace expertmesh::testing
