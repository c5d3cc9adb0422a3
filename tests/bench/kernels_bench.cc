// Products and expert feed-forward layers at the shape of a small model:
// hidden size 1024, expert width 512. One argument is the number of rows.
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

namespace expertmesh {
namespace {

constexpr int64_t kHidden = 1024;
constexpr int64_t kWidth = 512;

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

// Experts of 64 slots, used in turn: more than any cache holds, so that few
// rows measure memory as decoding does. Made once per type.
const std::vector<expert::PackedExpert>& Experts(DType dtype) {
  static std::map<DType, std::vector<expert::PackedExpert>> experts;
  std::vector<expert::PackedExpert>& of_type = experts[dtype];
  if (!of_type.empty()) return of_type;
  const Buffer weight = RandomElements(kHidden * kWidth, dtype);
  const TensorView in = {weight.data(), dtype, {kWidth, kHidden}};
  const TensorView out = {weight.data(), dtype, {kHidden, kWidth}};
  for (int e = 0; e < 64; ++e) {
    of_type.push_back({*PackedMatrix::Pack(in), *PackedMatrix::Pack(in),
                       *PackedMatrix::Pack(out)});
  }
  return of_type;
}

void Report(benchmark::State& state, double flops, double weight_bytes) {
  using benchmark::Counter;
  state.SetLabel(std::string(IsaName()));
  state.counters["GFLOP/s"] =
      Counter(flops * 1e-9 * state.iterations(), Counter::kIsRate);
  state.counters["weightGB/s"] =
      Counter(weight_bytes * 1e-9 * state.iterations(), Counter::kIsRate);
}

void BM_Gemm(benchmark::State& state, DType act, DType weight) {
  const int64_t rows = state.range(0);
  WorkerPool pool(Threads());
  const auto& experts = Experts(weight);
  const Buffer x = RandomElements(rows * kHidden, act);
  Buffer y(rows * kWidth * sizeof(float));
  size_t next = 0;
  for (auto _ : state) {
    Gemm({x.data(), act, kHidden}, rows, experts[next].gate_proj, y.as<float>(),
         kWidth, pool);
    next = (next + 1) % experts.size();
  }
  Report(state, 2.0 * rows * kWidth * kHidden,
         experts[0].gate_proj.size_bytes());
}

// `rows` rows spread evenly over 64 experts, at most one expert a row.
void BM_GroupedFfn(benchmark::State& state, DType dtype) {
  const int64_t rows = state.range(0);
  const int64_t num_experts = std::min<int64_t>(rows, 64);
  WorkerPool pool(Threads());
  const auto& experts = Experts(dtype);
  std::vector<uint32_t> offsets;
  for (int64_t e = 0; e <= num_experts; ++e) {
    offsets.push_back(static_cast<uint32_t>(rows * e / num_experts));
  }
  const Buffer x = RandomElements(rows * kHidden, dtype);
  Buffer y(rows * kHidden * DTypeBytes(dtype));
  const auto ffn = expert::MakeGroupedFfnCpu({kHidden, kWidth, rows}, &pool);
  std::vector<const expert::PackedExpert*> used(num_experts);
  size_t next = 0;
  for (auto _ : state) {
    for (auto& expert : used) expert = &experts[next++ % experts.size()];
    const absl::Status status =
        ffn->Run({used, offsets, dtype, x.data(), y.data()});
    if (!status.ok()) state.SkipWithError("Run failed");
  }
  Report(state, 6.0 * rows * kWidth * kHidden,
         static_cast<double>(experts[0].size_bytes()) * num_experts);
}

// One head group of `rows` rows of 128 dimensions over 4096 keys.
void BM_Attend(benchmark::State& state, DType dtype) {
  constexpr int64_t kHeadDim = 128, kKeys = 4096;
  const int64_t rows = state.range(0);
  const Buffer keys = RandomElements(kKeys * kHeadDim, dtype);
  const Buffer values = RandomElements(kKeys * kHeadDim, dtype);
  std::vector<const std::byte*> key_pages, value_pages;
  for (int64_t p = 0; p < kKeys / kPageTokens; ++p) {
    const int64_t at = p * kPageTokens * kHeadDim * DTypeBytes(dtype);
    key_pages.push_back(keys.data() + at);
    value_pages.push_back(values.data() + at);
  }
  const Buffer queries = RandomElements(rows * kHeadDim, DType::kF32);
  const std::vector<int64_t> positions(rows, kKeys - 1);
  Buffer out(rows * kHeadDim * sizeof(float));
  for (auto _ : state) {
    AttendRows(queries.as<float>(), positions.data(), rows, kHeadDim, 0,
               {dtype, key_pages.data(), value_pages.data()}, out.as<float>());
  }
  Report(state, 4.0 * rows * kKeys * kHeadDim,
         2.0 * kKeys * kHeadDim * DTypeBytes(dtype));
}

BENCHMARK_CAPTURE(BM_Gemm, f32, DType::kF32, DType::kF32)
    ->Arg(1)
    ->Arg(4)
    ->Arg(32)
    ->Arg(512);
BENCHMARK_CAPTURE(BM_Gemm, f32_by_bf16, DType::kF32, DType::kBF16)
    ->Arg(1)
    ->Arg(4)
    ->Arg(32)
    ->Arg(512);
BENCHMARK_CAPTURE(BM_Gemm, bf16, DType::kBF16, DType::kBF16)
    ->Arg(1)
    ->Arg(4)
    ->Arg(32)
    ->Arg(512);
BENCHMARK_CAPTURE(BM_GroupedFfn, f32, DType::kF32)->Arg(1)->Arg(32)->Arg(512);
BENCHMARK_CAPTURE(BM_GroupedFfn, bf16, DType::kBF16)->Arg(1)->Arg(32)->Arg(512);
BENCHMARK_CAPTURE(BM_Attend, f32, DType::kF32)->Arg(1)->Arg(8)->Arg(96);
BENCHMARK_CAPTURE(BM_Attend, bf16, DType::kBF16)->Arg(1)->Arg(8)->Arg(96);

}  // namespace
}  // namespace expertmesh
