// What one count costs: prometheus-cpp's, which a scrape reads as they are,
// beside counts that each thread keeps for itself and a scrape adds up; and all
// counts of a decode step.
//   metrics_bench --benchmark_min_time=0.2
// Threads of a benchmark count in the same metric.

#include <benchmark/benchmark.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <vector>

#include "router_service/engine/expert_load.h"
#include "services/runtime/metrics.h"

namespace expertmesh {
namespace {

// A count in which each thread has a cache line of its own, as far as there are
// enough, so that none waits for another's.
class ShardedCounter {
 public:
  void Increment(uint64_t by = 1) {
    shards_[ShardOfThread()].count.fetch_add(by, std::memory_order_relaxed);
  }
  uint64_t Value() const {
    uint64_t sum = 0;
    for (const Shard& shard : shards_) {
      sum += shard.count.load(std::memory_order_relaxed);
    }
    return sum;
  }

 private:
  static constexpr size_t kShards = 16;
  struct alignas(64) Shard {
    std::atomic<uint64_t> count{0};
  };
  static size_t ShardOfThread() {
    static std::atomic<size_t> next{0};
    static thread_local const size_t shard = next.fetch_add(1) % kShards;
    return shard;
  }
  std::array<Shard, kShards> shards_;
};

// A count that one thread alone writes.
class OwnCounter {
 public:
  void Increment(uint64_t by = 1) {
    count_.store(count_.load(std::memory_order_relaxed) + by,
                 std::memory_order_relaxed);
  }

 private:
  std::atomic<uint64_t> count_{0};
};

template <typename CounterType>
void BM_Increment(benchmark::State& state) {
  static CounterType* const counter = new CounterType;
  for (auto _ : state) {
    counter->Increment();
    benchmark::ClobberMemory();
  }
}
BENCHMARK_TEMPLATE(BM_Increment, prometheus::Counter)->ThreadRange(1, 4);
BENCHMARK_TEMPLATE(BM_Increment, ShardedCounter)->ThreadRange(1, 4);
BENCHMARK_TEMPLATE(BM_Increment, OwnCounter);

void BM_GaugeSet(benchmark::State& state) {
  static auto* const gauge = new prometheus::Gauge;
  double value = 0;
  for (auto _ : state) gauge->Set(value += 1);
}
BENCHMARK(BM_GaugeSet)->ThreadRange(1, 4);

void BM_HistogramObserve(benchmark::State& state) {
  static auto* const histogram =
      new prometheus::Histogram(StepSecondsBuckets());
  for (auto _ : state) histogram->Observe(3e-3);
}
BENCHMARK(BM_HistogramObserve)->ThreadRange(1, 4);

// Every count of a step in which range(0) requests decode, by a router with
// range(1) MoE layers whose rows go to range(2) services: those of the engine
// (engine.cc) and of transport (endpoint_connection.cc).
void BM_RouterDecodeStep(benchmark::State& state) {
  const int64_t requests = state.range(0);
  const int64_t batches = state.range(1) * state.range(2);
  std::deque<prometheus::Counter> counters(18);
  std::deque<prometheus::Gauge> gauges(6);
  std::deque<prometheus::Histogram> histograms;
  for (int i = 0; i < 3; ++i) histograms.emplace_back(StepSecondsBuckets());
  for (auto _ : state) {
    for (auto& counter : counters) counter.Increment(1);  // phases, rows, pages
    for (int i = 0; i < 2; ++i) {
      for (auto& gauge : gauges) gauge.Set(1);  // PublishLoad, twice
    }
    histograms[0].Observe(3e-3);
    for (int64_t i = 0; i < requests; ++i) {
      counters[0].Increment();
      histograms[1].Observe(3e-3);
    }
    for (int64_t i = 0; i < batches; ++i) {
      counters[1].Increment(1000);  // bytes sent
      counters[2].Increment(1000);  // and received
      gauges[0].Set(1);             // rows in flight, when sent
      gauges[0].Set(1);             // and when answered
      histograms[2].Observe(3e-4);
    }
  }
}
BENCHMARK(BM_RouterDecodeStep)
    ->ArgNames({"requests", "layers", "services"})
    ->Args({1, 4, 2})
    ->Args({32, 4, 2})
    ->Args({32, 64, 32});

// Rows by expert in a step of 32 requests by 8 experts in each of 64 layers of
// 128: a metric for each slot, as it is counted (0), or the engine's own array,
// which a scrape reads (1).
void BM_RowsByExpert(benchmark::State& state) {
  constexpr int64_t kLayers = 64, kExperts = 128;
  std::vector<uint32_t> rows(kLayers * kExperts);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = i * 7919 % 5;
  std::deque<prometheus::Counter> counters(rows.size());
  router::ExpertLoad load(kLayers, kExperts, /*counts_totals=*/true);
  for (auto _ : state) {
    if (state.range(0) == 1) {
      load.Add(rows, absl::Seconds(1));
      continue;
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i] > 0) counters[i].Increment(rows[i]);
    }
  }
}
BENCHMARK(BM_RowsByExpert)->Arg(0)->Arg(1);

// Every count of a batch in an expert service.
void BM_ExpertBatch(benchmark::State& state) {
  std::deque<prometheus::Counter> counters(2);
  std::deque<prometheus::Gauge> gauges(2);
  std::deque<prometheus::Histogram> histograms;
  for (int i = 0; i < 3; ++i) histograms.emplace_back(StepSecondsBuckets());
  for (auto _ : state) {
    for (auto& counter : counters) counter.Increment(8);
    for (int i = 0; i < 2; ++i) {
      for (auto& gauge : gauges) gauge.Set(1);
    }
    for (auto& histogram : histograms) histogram.Observe(3e-4);
  }
}
BENCHMARK(BM_ExpertBatch);

}  // namespace
}  // namespace expertmesh
