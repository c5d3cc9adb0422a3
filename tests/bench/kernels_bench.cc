// Products and expert feed-forward layers at the shape of a small model:
// hidden size 1024, expert width 512, 64 experts of which a token takes 8. The
// argument is the number of rows of a product, of tokens of a layer.
// EXPERTMESH_BENCH_THREADS sets the threads (default 1).

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "expert_service/kernels/grouped_ffn.h"
#include "services/linalg/attention.h"
#include "services/linalg/gemm.h"
#include "services/linalg/quantized_rows.h"

namespace expertmesh {
namespace {

constexpr int64_t kHidden = 1024;
constexpr int64_t kWidth = 512;
constexpr int64_t kExperts = 64;
constexpr int64_t kTopK = 8;

int Threads() {
  const char* value = std::getenv("EXPERTMESH_BENCH_THREADS");
  return value == nullptr ? 1 : std::max(std::atoi(value), 1);
}

Buffer RandomElements(int64_t n, DType dtype, float scale = 0.05f) {
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  Buffer buffer(n * DTypeBytes(dtype));
  for (int64_t i = 0; i < n; ++i) {
    if (dtype == DType::kF32) {
      buffer.as<float>()[i] = uniform(generator);
    } else {
      buffer.as<BF16>()[i] = ToBF16(uniform(generator));
    }
  }
  return buffer;
}

// Experts of two layers, used in turn: more than any cache holds, so that few
// rows measure memory as decoding does. Made once per format.
const std::vector<expert::PackedExpert>& Experts(WeightFormat format) {
  static std::map<WeightFormat, std::vector<expert::PackedExpert>> experts;
  std::vector<expert::PackedExpert>& of_format = experts[format];
  if (!of_format.empty()) return of_format;
  const DType dtype = format == WeightFormat::kF32 ? DType::kF32 : DType::kBF16;
  const Buffer weight = RandomElements(kHidden * kWidth, dtype);
  const TensorView in = {weight.data(), dtype, {kWidth, kHidden}};
  const TensorView out = {weight.data(), dtype, {kHidden, kWidth}};
  for (int64_t e = 0; e < 2 * kExperts; ++e) {
    of_format.push_back({*PackedMatrix::Pack(in, format),
                         *PackedMatrix::Pack(in, format),
                         *PackedMatrix::Pack(out, format)});
  }
  return of_format;
}

// Rows in both of their forms.
struct Rows {
  Rows(int64_t rows, DType act)
      : act(act), x(RandomElements(rows * kHidden, act)), codes(rows, kHidden) {
    for (int64_t row = 0; row < rows; ++row) {
      if (act == DType::kF32) {
        codes.Store(row, x.as<float>() + row * kHidden);
      } else {
        codes.Store(row, x.as<BF16>() + row * kHidden);
      }
    }
  }
  ActivationView view() const { return {x.data(), act, kHidden, codes.view()}; }

  DType act;
  Buffer x;
  QuantizedRows codes;
};

void Report(benchmark::State& state, double flops, double weight_bytes) {
  using benchmark::Counter;
  state.SetLabel(std::string(IsaName()));
  state.counters["GFLOP/s"] =
      Counter(flops * 1e-9 * state.iterations(), Counter::kIsRate);
  state.counters["weightGB/s"] =
      Counter(weight_bytes * 1e-9 * state.iterations(), Counter::kIsRate);
}

void BM_Gemm(benchmark::State& state, DType act, WeightFormat weight) {
  const int64_t rows = state.range(0);
  WorkerPool pool(Threads());
  const auto& experts = Experts(weight);
  const Rows x(rows, act);
  Buffer y(rows * kWidth * sizeof(float));
  size_t next = 0;
  for (auto _ : state) {
    Gemm(x.view(), rows, experts[next].gate_proj, y.as<float>(), kWidth, pool);
    next = (next + 1) % experts.size();
  }
  Report(state, 2.0 * rows * kWidth * kHidden,
         experts[0].gate_proj.size_bytes());
}

// One layer for some tokens, each with kTopK of kExperts experts, evenly.
void BM_GroupedFfn(benchmark::State& state, DType act, WeightFormat weight) {
  const int64_t tokens = state.range(0);
  const int64_t rows = tokens * kTopK;
  const int64_t num_experts = std::min(rows, kExperts);
  WorkerPool pool(Threads());
  const auto& experts = Experts(weight);
  std::vector<uint32_t> offsets;
  for (int64_t e = 0; e <= num_experts; ++e) {
    offsets.push_back(static_cast<uint32_t>(rows * e / num_experts));
  }
  const Buffer x = RandomElements(rows * kHidden, act);
  Buffer y(rows * kHidden * DTypeBytes(act));
  const auto ffn = expert::MakeGroupedFfnCpu(
      {kHidden, kWidth, rows, Activation::kSiluGlu, IsQuantized(weight)},
      &pool);
  std::vector<const expert::LoadedExpert*> used(num_experts);
  size_t next = 0;
  for (auto _ : state) {
    for (auto& expert : used) expert = &experts[next++ % experts.size()];
    const absl::Status status =
        ffn->Run({used, offsets, act, x.data(), y.data()});
    if (!status.ok()) state.SkipWithError("Run failed");
  }
  Report(state, 6.0 * rows * kWidth * kHidden,
         static_cast<double>(experts[0].size_bytes()) * num_experts);
  state.counters["tokens/s, 16 layers"] = benchmark::Counter(
      tokens / 16.0 * state.iterations(), benchmark::Counter::kIsRate);
}

// One KV head's keys or values. Codes of bytes and scales alike are those of
// halves: only their number matters.
Buffer RandomPages(int64_t num_pages, int64_t head_dim, KvFormat format) {
  const int64_t bytes = num_pages * KvPageBytes(head_dim, format);
  return format == KvFormat::kF32 ? RandomElements(bytes / 4, DType::kF32)
                                  : RandomElements(bytes / 2, DType::kBF16);
}

// One head group of `rows` rows of 128 dimensions over 4096 keys.
void BM_Attend(benchmark::State& state, KvFormat format) {
  constexpr int64_t kHeadDim = 128, kKeys = 4096;
  const int64_t rows = state.range(0);
  const int64_t page_bytes = KvPageBytes(kHeadDim, format);
  const Buffer keys = RandomPages(kKeys / kPageTokens, kHeadDim, format);
  const Buffer values = RandomPages(kKeys / kPageTokens, kHeadDim, format);
  std::vector<const std::byte*> key_pages, value_pages;
  for (int64_t p = 0; p < kKeys / kPageTokens; ++p) {
    key_pages.push_back(keys.data() + p * page_bytes);
    value_pages.push_back(values.data() + p * page_bytes);
  }
  const Buffer queries = RandomElements(rows * kHeadDim, DType::kF32);
  const std::vector<int64_t> positions(rows, kKeys - 1);
  Buffer out(rows * kHeadDim * sizeof(float));
  for (auto _ : state) {
    AttendRows(queries.as<float>(), positions.data(), rows, kHeadDim, 0,
               {format, key_pages.data(), value_pages.data()}, out.as<float>());
  }
  Report(state, 4.0 * rows * kKeys * kHeadDim,
         2.0 * static_cast<double>(keys.size()));
}

void FewToManyRows(benchmark::internal::Benchmark* bench) {
  for (const int64_t rows : {1, 4, 16, 64, 512}) bench->Arg(rows);
  bench->UseRealTime();
}
void FewToManyTokens(benchmark::internal::Benchmark* bench) {
  for (const int64_t tokens : {1, 32, 512}) bench->Arg(tokens);
  bench->UseRealTime();
}

BENCHMARK_CAPTURE(BM_Gemm, f32, DType::kF32, WeightFormat::kF32)
    ->Apply(FewToManyRows);
BENCHMARK_CAPTURE(BM_Gemm, f32_by_bf16, DType::kF32, WeightFormat::kBF16)
    ->Apply(FewToManyRows);
BENCHMARK_CAPTURE(BM_Gemm, bf16, DType::kBF16, WeightFormat::kBF16)
    ->Apply(FewToManyRows);
BENCHMARK_CAPTURE(BM_Gemm, int8, DType::kBF16, WeightFormat::kInt8)
    ->Apply(FewToManyRows);
BENCHMARK_CAPTURE(BM_Gemm, int4, DType::kBF16, WeightFormat::kInt4)
    ->Apply(FewToManyRows);
BENCHMARK_CAPTURE(BM_GroupedFfn, f32, DType::kF32, WeightFormat::kF32)
    ->Apply(FewToManyTokens);
BENCHMARK_CAPTURE(BM_GroupedFfn, bf16, DType::kBF16, WeightFormat::kBF16)
    ->Apply(FewToManyTokens);
BENCHMARK_CAPTURE(BM_GroupedFfn, int8, DType::kBF16, WeightFormat::kInt8)
    ->Apply(FewToManyTokens);
BENCHMARK_CAPTURE(BM_GroupedFfn, int4, DType::kBF16, WeightFormat::kInt4)
    ->Apply(FewToManyTokens);
BENCHMARK_CAPTURE(BM_Attend, f32, KvFormat::kF32)->Arg(1)->Arg(8)->Arg(96);
BENCHMARK_CAPTURE(BM_Attend, bf16, KvFormat::kBF16)->Arg(1)->Arg(8)->Arg(96);
BENCHMARK_CAPTURE(BM_Attend, int8, KvFormat::kInt8)->Arg(1)->Arg(8)->Arg(96);

}  // namespace
}  // namespace expertmesh
