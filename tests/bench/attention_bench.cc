// Attention as a router's steps ask for it, beside what this machine's core and
// memory can do at most, measured in the same run. Four KV heads of which each
// serves a group of query heads; prefill in tasks of 16 queries, as the router
// makes them, decode with one query a sequence. One thread.

#include <benchmark/benchmark.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/linalg/attention.h"
#include "services/linalg/buffer.h"
#include "services/linalg/gemm.h"

namespace expertmesh {
namespace {

using benchmark::Counter;

constexpr int64_t kKvHeads = 4;
constexpr int64_t kQueriesPerTask = 16;

#if defined(__x86_64__)
// Independent fused multiply-adds in registers: 12 chains of 16 lanes.
__attribute__((target("avx512f"))) float FmaChains(int64_t steps) {
  __m512 sums[12];
  for (int i = 0; i < 12; ++i) sums[i] = _mm512_set1_ps(0.001f * i);
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sums[i] = _mm512_fmadd_ps(sums[i], a, b);
  }
  for (int i = 1; i < 12; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return _mm512_reduce_add_ps(sums[0]);
}

void BM_PeakFma(benchmark::State& state) {
  if (!__builtin_cpu_supports("avx512f")) {
    state.SkipWithError("no AVX-512");
    return;
  }
  constexpr int64_t kSteps = 10000;
  int64_t steps = kSteps;
  for (auto _ : state) {
    benchmark::DoNotOptimize(steps);
    benchmark::DoNotOptimize(FmaChains(steps));
  }
  state.counters["GFLOP/s"] =
      Counter(12 * 16 * 2e-9 * kSteps * state.iterations(), Counter::kIsRate);
}
BENCHMARK(BM_PeakFma);
#endif

// Reads more than any cache holds.
void BM_PeakRead(benchmark::State& state) {
  std::vector<uint64_t> words((size_t{256} << 20) / 8, 1);
  for (auto _ : state) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i < words.size(); i += 8) {
      for (size_t j = 0; j < 8; ++j) sums[j] ^= words[i + j];
    }
    benchmark::DoNotOptimize(sums);
  }
  state.counters["GB/s"] =
      Counter(8e-9 * static_cast<double>(words.size()) * state.iterations(),
              Counter::kIsRate);
}
BENCHMARK(BM_PeakRead);

struct Shape {
  int64_t head_dim;
  int64_t group;
  KvFormat format;
};

template <typename Random>
void FillPage(std::byte* page, const Shape& shape, const Random& random) {
  for (int64_t i = 0; i < kPageTokens * shape.head_dim; ++i) {
    switch (shape.format) {
      case KvFormat::kF32:
        reinterpret_cast<float*>(page)[i] = random();
        break;
      case KvFormat::kBF16:
        reinterpret_cast<BF16*>(page)[i] = ToBF16(random());
        break;
      case KvFormat::kInt8:
        reinterpret_cast<int8_t*>(page + kPageScaleBytes)[i] =
            static_cast<int8_t>(random() * 1000);
        break;
    }
  }
  if (shape.format != KvFormat::kInt8) return;
  for (int64_t i = 0; i < kPageTokens; ++i) {
    reinterpret_cast<float*>(page)[i] = 1e-3f;
  }
}

// Pages of some sequences, [sequence][page][kv_head], as a cache holds them.
class Sequences {
 public:
  Sequences(int64_t count, int64_t context, const Shape& shape)
      : pages_(context / kPageTokens),
        page_bytes_(KvPageBytes(shape.head_dim, shape.format)),
        keys_(count * pages_ * kKvHeads * page_bytes_),
        values_(keys_.size()) {
    std::mt19937 generator(1);
    const auto random = [&] {
      return static_cast<float>(generator() % 1024) * 1e-4f;
    };
    for (Buffer* buffer : {&keys_, &values_}) {
      std::byte* end = buffer->data() + buffer->size();
      for (std::byte* page = buffer->data(); page < end; page += page_bytes_) {
        FillPage(page, shape, random);
      }
    }
  }

  void Attend(int64_t sequence, int64_t kv_head,
              const std::vector<int64_t>& positions, const Shape& shape,
              const Buffer& queries, Buffer* out) {
    key_table_.clear();
    value_table_.clear();
    for (int64_t page = 0; page <= positions.back() / kPageTokens; ++page) {
      const int64_t at =
          ((sequence * pages_ + page) * kKvHeads + kv_head) * page_bytes_;
      key_table_.push_back(keys_.data() + at);
      value_table_.push_back(values_.data() + at);
    }
    AttendRows(queries.as<float>(), positions.data(),
               static_cast<int64_t>(positions.size()), shape.head_dim, 0,
               {shape.format, key_table_.data(), value_table_.data()},
               out->as<float>());
  }

  double bytes() const {
    return static_cast<double>(keys_.size() + values_.size());
  }

 private:
  const int64_t pages_;
  const int64_t page_bytes_;
  Buffer keys_, values_;
  std::vector<const std::byte*> key_table_, value_table_;
};

std::vector<int64_t> Positions(int64_t first, int64_t last, int64_t group) {
  std::vector<int64_t> positions;
  for (int64_t p = first; p < last; ++p) {
    positions.insert(positions.end(), group, p);
  }
  return positions;
}

Buffer Queries(int64_t rows, int64_t head_dim) {
  Buffer queries(rows * head_dim * sizeof(float));
  for (int64_t i = 0; i < rows * head_dim; ++i) {
    queries.as<float>()[i] = static_cast<float>(i % 17) * 0.01f;
  }
  return queries;
}

void Report(benchmark::State& state, double keys_seen, double bytes,
            const Shape& shape) {
  state.SetLabel(std::string(IsaName()));
  state.counters["GFLOP/s"] =
      Counter(4e-9 * keys_seen * static_cast<double>(shape.head_dim) *
                  state.iterations(),
              Counter::kIsRate);
  state.counters["GB/s"] =
      Counter(1e-9 * bytes * state.iterations(), Counter::kIsRate);
}

// A prompt of so many tokens.
void BM_Prefill(benchmark::State& state, Shape shape) {
  const int64_t tokens = state.range(0);
  Sequences sequences(1, tokens, shape);
  const int64_t rows = kQueriesPerTask * shape.group;
  const Buffer queries = Queries(rows, shape.head_dim);
  Buffer out(queries.size());
  for (auto _ : state) {
    for (int64_t first = 0; first < tokens; first += kQueriesPerTask) {
      const auto positions =
          Positions(first, first + kQueriesPerTask, shape.group);
      for (int64_t head = 0; head < kKvHeads; ++head) {
        sequences.Attend(0, head, positions, shape, queries, &out);
      }
    }
  }
  const double seen = 0.5 * static_cast<double>(tokens * (tokens + 1));
  Report(state, seen * static_cast<double>(shape.group * kKvHeads),
         sequences.bytes(), shape);
}

// One token of each of so many sequences of so many tokens.
void BM_Decode(benchmark::State& state, Shape shape) {
  const int64_t count = state.range(0);
  const int64_t context = state.range(1);
  Sequences sequences(count, context, shape);
  const Buffer queries = Queries(shape.group, shape.head_dim);
  Buffer out(queries.size());
  const auto positions = Positions(context - 1, context, shape.group);
  for (auto _ : state) {
    for (int64_t sequence = 0; sequence < count; ++sequence) {
      for (int64_t head = 0; head < kKvHeads; ++head) {
        sequences.Attend(sequence, head, positions, shape, queries, &out);
      }
    }
  }
  Report(state, static_cast<double>(count * context * shape.group * kKvHeads),
         sequences.bytes(), shape);
}

void Register() {
  for (const KvFormat format :
       {KvFormat::kF32, KvFormat::kBF16, KvFormat::kInt8}) {
    for (const auto& [head_dim, group] :
         {std::pair{64, 4}, {128, 4}, {128, 8}}) {
      const Shape shape = {head_dim, group, format};
      const std::string name =
          absl::StrCat("/", KvFormatName(format), "/", head_dim, "x", group);
      const auto run = [shape](auto body) {
        return [shape, body](benchmark::State& state) { body(state, shape); };
      };
      benchmark::RegisterBenchmark(("BM_Prefill" + name).c_str(),
                                   run(BM_Prefill))
          ->Arg(512)
          ->Arg(2048);
      benchmark::RegisterBenchmark(("BM_Decode" + name).c_str(), run(BM_Decode))
          ->ArgsProduct({{1, 16, 32}, {512, 2048}});
    }
  }
}

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  expertmesh::Register();
  benchmark::RunSpecifiedBenchmarks();
}
