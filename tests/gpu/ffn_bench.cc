// The expert feed-forward on a GPU, beside what the device can do at best.
//
//   Decode/<model>/<format>/<tokens>   weights read, bytes a second
//   Prefill/<model>/<format>/<tokens>  operations a second
//   Batch/<rows>                       a batch from pinned memory and back:
//                                      what it takes beyond the kernels
//   CopyBandwidth, LargeGemm           the ceilings; the latter where cuBLAS is
//
// Times are the device's own, by events around several launches.

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "expert_service/kernels/cuda/cuda_backend.h"
#include "expert_service/kernels/cuda/cuda_memory.h"
#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "expert_service/kernels/cuda/grouped_gemm.h"
#include "services/core/clock.h"

namespace expertmesh::expert {
namespace {

// No weight, scale or activation of these bytes is large or no number.
constexpr int kFill = 0x3c;
// Batches in turn, so that no weights are in a cache from the one before.
constexpr int kTurns = 16;
// Rows and workspaces of the largest case take less.
constexpr int64_t kBytesBesideWeights = int64_t{2} << 30;

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <typename T>
T Get(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
  std::exit(1);
}

DeviceBuffer Filled(int64_t bytes) {
  DeviceBuffer buffer = Get(DeviceBuffer::Allocate(bytes));
  Check(cudaMemset(buffer.data(), kFill, static_cast<size_t>(bytes)));
  return buffer;
}

struct Model {
  const char* name;
  int64_t hidden;
  int64_t intermediate;
  int num_experts;
  int top_k;
};
constexpr Model kModels[] = {
    {"qwen3_30b", 2048, 768, 128, 8},
    {"mixtral", 4096, 14336, 8, 2},
    {"deepseek_v3", 7168, 2048, 256, 8},
};

// Seconds between two points of the default stream.
class DeviceTimer {
 public:
  DeviceTimer() {
    Check(cudaEventCreate(&start_));
    Check(cudaEventCreate(&end_));
  }
  ~DeviceTimer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
  }
  void Start() { Check(cudaEventRecord(start_)); }
  double Stop() {
    Check(cudaEventRecord(end_));
    Check(cudaEventSynchronize(end_));
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, start_, end_));
    return milliseconds / 1e3;
  }

 private:
  cudaEvent_t start_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

// Weights as --expert-dtype and --numerics have them.
struct Weights {
  const char* name;
  WeightFormat format;
  WeightOrder order = WeightOrder::kFragments;
};
constexpr Weights kWeights[] = {
    {"bf16", WeightFormat::kBF16},
    {"bf16_fast", WeightFormat::kBF16, WeightOrder::kRows},
    {"int8", WeightFormat::kInt8},
    {"int4", WeightFormat::kInt4},
};

// All experts of one layer.
class Layer {
 public:
  Layer(const Model& model, const Weights& weights)
      : shape_{model.hidden, model.intermediate, weights.format,
               weights.order} {
    const WeightFormat format = weights.format;
    const int64_t n = model.intermediate;
    const int64_t k = model.hidden;
    const int64_t in = CudaAligned(CudaMatrixBytes(n, k, format));
    memory_ = Filled(Bytes(model, format));
    for (int e = 0; e < model.num_experts; ++e) {
      const std::byte* const at =
          memory_.data() + e * ExpertBytes(model, format);
      views_.push_back({CudaMatrixAt(at, n, k, format),
                        CudaMatrixAt(at + in, n, k, format),
                        CudaMatrixAt(at + 2 * in, k, n, format)});
    }
  }

  static int64_t ExpertBytes(const Model& model, WeightFormat format) {
    return 2 * CudaAligned(
                   CudaMatrixBytes(model.intermediate, model.hidden, format)) +
           CudaAligned(
               CudaMatrixBytes(model.hidden, model.intermediate, format));
  }
  static int64_t Bytes(const Model& model, WeightFormat format) {
    return ExpertBytes(model, format) * model.num_experts;
  }

  const FfnShape& shape() const { return shape_; }
  const CudaExpertView& view(int expert) const { return views_[expert]; }

 private:
  FfnShape shape_;
  DeviceBuffer memory_;
  std::vector<CudaExpertView> views_;
};

// Rows of tokens whose experts are chosen at random, ready on the device.
class Batch {
 public:
  Batch(const Model& model, const Layer& layer, int64_t tokens, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<uint32_t> counts(static_cast<size_t>(model.num_experts));
    std::vector<int> ids(counts.size());
    for (size_t e = 0; e < ids.size(); ++e) ids[e] = static_cast<int>(e);
    for (int64_t token = 0; token < tokens; ++token) {
      for (int i = 0; i < model.top_k; ++i) {
        std::uniform_int_distribution<size_t> pick(i, ids.size() - 1);
        std::swap(ids[i], ids[pick(random)]);
        ++counts[ids[i]];
      }
    }
    std::vector<const CudaExpertView*> views;
    std::vector<uint32_t> offsets = {0};
    for (int e = 0; e < model.num_experts; ++e) {
      if (counts[e] == 0) continue;
      views.push_back(&layer.view(e));
      offsets.push_back(offsets.back() + counts[e]);
    }
    num_groups_ = static_cast<int64_t>(views.size());
    batch_.shape = layer.shape();
    batch_.dtype = DType::kBF16;
    batch_.num_rows = offsets.back();
    host_tables_.resize(MaxFfnTableBytes(batch_.num_rows, num_groups_));
    std::byte* const tables = host_tables_.data();
    batch_.tables = WriteFfnTables({views.data(), offsets.data(), num_groups_},
                                   {batch_.num_rows, num_groups_},
                                   TileRowsOf(layer.shape()), tables);
    batch_.large_tiles = LargeTiles(batch_.tables, tables);
    tables_ = Filled(batch_.tables.size_bytes);
    Check(cudaMemcpy(tables_.data(), tables,
                     static_cast<size_t>(batch_.tables.size_bytes),
                     cudaMemcpyHostToDevice));
  }

  int64_t num_groups() const { return num_groups_; }
  int64_t num_rows() const { return batch_.num_rows; }

  // `gemm`: for weights in rows.
  void Launch(std::byte* x, std::byte* y, std::byte* workspace,
              GroupedGemm* gemm) {
    batch_.gemm = gemm;
    batch_.table_memory = tables_.data();
    batch_.x = x;
    batch_.y = y;
    batch_.workspace = workspace;
    Check(LaunchGroupedFfn(batch_, nullptr));
  }

 private:
  FfnBatch batch_;
  int64_t num_groups_;
  std::vector<std::byte> host_tables_;
  DeviceBuffer tables_;
};

void RunLayer(benchmark::State& state, const Model& model,
              const Weights& weights, int64_t tokens) {
  const WeightFormat format = weights.format;
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  Check(cudaMemGetInfo(&free_bytes, &total_bytes));
  if (Layer::Bytes(model, format) + kBytesBesideWeights >
      static_cast<int64_t>(free_bytes)) {
    state.SkipWithError("too little device memory");
    return;
  }
  std::unique_ptr<GroupedGemm> gemm;
  if (weights.order == WeightOrder::kRows) {
    auto made = GroupedGemm::Create(nullptr, model.num_experts);
    if (!made.ok()) {
      state.SkipWithError(std::string(made.status().message()).c_str());
      return;
    }
    gemm = *std::move(made);
  }
  const Layer layer(model, weights);
  std::vector<std::unique_ptr<Batch>> batches;
  int64_t groups = 0;
  for (int turn = 0; turn < kTurns; ++turn) {
    batches.push_back(std::make_unique<Batch>(model, layer, tokens, turn + 1));
    groups += batches.back()->num_groups();
  }
  const int64_t rows = tokens * model.top_k;
  const DeviceBuffer x = Filled(rows * model.hidden * 2);
  const DeviceBuffer y = Filled(rows * model.hidden * 2);
  const DeviceBuffer workspace = Filled(FfnWorkspaceBytes(layer.shape(), rows));
  DeviceTimer timer;
  for (auto _ : state) {
    timer.Start();
    for (const auto& batch : batches) {
      batch->Launch(x.data(), y.data(), workspace.data(), gemm.get());
    }
    state.SetIterationTime(timer.Stop() / kTurns);
  }
  const auto per_second = [&](double amount) {
    return benchmark::Counter(amount * static_cast<double>(state.iterations()),
                              benchmark::Counter::kIsRate,
                              benchmark::Counter::kIs1000);
  };
  state.counters["weights_bytes"] = per_second(
      static_cast<double>(groups * Layer::ExpertBytes(model, format)) / kTurns);
  state.counters["operations"] = per_second(
      6.0 * static_cast<double>(rows * model.hidden * model.intermediate));
}

// Bytes read and written.
void CopyBandwidth(benchmark::State& state) {
  constexpr int64_t kBytes = int64_t{4} << 30;
  const DeviceBuffer from = Filled(kBytes);
  const DeviceBuffer to = Filled(kBytes);
  DeviceTimer timer;
  for (auto _ : state) {
    timer.Start();
    Check(cudaMemcpyAsync(to.data(), from.data(), kBytes,
                          cudaMemcpyDeviceToDevice, nullptr));
    state.SetIterationTime(timer.Stop());
  }
  state.SetBytesProcessed(2 * kBytes * state.iterations());
}

// cuBLAS, as its header declares what is used here.
struct Cublas {
  using Create = int (*)(void**);
  using GemmEx = int (*)(void*, int, int, int, int, int, const void*,
                         const void*, int, int, const void*, int, int,
                         const void*, void*, int, int, int, int);

  static Cublas Open() {
    Cublas cublas;
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
      void* const library = dlopen(name, RTLD_NOW);
      if (library == nullptr) continue;
      const auto create =
          reinterpret_cast<Create>(dlsym(library, "cublasCreate_v2"));
      cublas.gemm = reinterpret_cast<GemmEx>(dlsym(library, "cublasGemmEx"));
      if (create != nullptr && create(&cublas.handle) == 0) return cublas;
      cublas.gemm = nullptr;
    }
    return cublas;
  }

  void* handle = nullptr;
  GemmEx gemm = nullptr;  // null: no cuBLAS here
};

void LargeGemm(benchmark::State& state) {
  constexpr int kSize = 8192;
  constexpr int kTranspose = 1, kNormal = 0;           // CUBLAS_OP_T, _N
  constexpr int kBF16 = 14, kF32 = 68, kDefault = -1;  // CUDA_R_16BF, …
  const Cublas cublas = Cublas::Open();
  if (cublas.gemm == nullptr) {
    state.SkipWithError("no cuBLAS");
    return;
  }
  const DeviceBuffer a = Filled(int64_t{kSize} * kSize * 2);
  const DeviceBuffer b = Filled(int64_t{kSize} * kSize * 2);
  const DeviceBuffer c = Filled(int64_t{kSize} * kSize * 2);
  const float one = 1, zero = 0;
  DeviceTimer timer;
  for (auto _ : state) {
    timer.Start();
    const int status =
        cublas.gemm(cublas.handle, kTranspose, kNormal, kSize, kSize, kSize,
                    &one, a.data(), kBF16, kSize, b.data(), kBF16, kSize, &zero,
                    c.data(), kBF16, kSize, kF32, kDefault);
    state.SetIterationTime(timer.Stop());
    if (status != 0) {
      state.SkipWithError("cublasGemmEx failed");
      return;
    }
  }
  state.counters["operations"] = benchmark::Counter(
      2.0 * kSize * kSize * kSize * static_cast<double>(state.iterations()),
      benchmark::Counter::kIsRate, benchmark::Counter::kIs1000);
}

// From rows in pinned memory to outputs there, as the executor has it.
void RunBatch(benchmark::State& state, int64_t rows) {
  CudaBackendOptions options;
  options.hidden_size = 2048;
  options.intermediate_size = 64;  // next to nothing to compute
  options.max_rows = 1024;
  options.max_groups = 8;
  const auto backend = Get(OpenCudaBackend(options));
  const std::vector<uint16_t> weights(
      static_cast<size_t>(options.hidden_size * options.intermediate_size),
      kFill << 8 | kFill);
  const auto view = [&](int64_t n, int64_t k) {
    TensorView tensor;
    tensor.dtype = DType::kBF16;
    tensor.shape = {n, k};
    tensor.data = reinterpret_cast<const std::byte*>(weights.data());
    return tensor;
  };
  const auto in = view(options.intermediate_size, options.hidden_size);
  const auto expert = Get(backend->Load(ExpertTensors{
      in, in, view(options.hidden_size, options.intermediate_size)}));
  GroupedFfn& ffn = backend->ffn();
  const auto bytes = static_cast<size_t>(rows * options.hidden_size * 2);
  const RowBuffer x = ffn.NewRowBuffer(bytes);
  const RowBuffer y = ffn.NewRowBuffer(bytes);
  std::fill_n(x.get(), bytes, std::byte{kFill});
  const LoadedExpert* const experts[] = {expert.get()};
  const uint32_t offsets[] = {0, static_cast<uint32_t>(rows)};
  for (auto _ : state) {
    const absl::Duration start = Clock::Real()->Now();
    const absl::Status status =
        ffn.Run({experts, offsets, DType::kBF16, x.get(), y.get()});
    state.SetIterationTime(absl::ToDoubleSeconds(Clock::Real()->Now() - start));
    if (!status.ok()) {
      state.SkipWithError(status.ToString().c_str());
      return;
    }
  }
}

void Register() {
  const auto add = [](const std::string& name, const auto& run) {
    benchmark::RegisterBenchmark(name.c_str(), run)
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  };
  add("CopyBandwidth", CopyBandwidth);
  add("LargeGemm", LargeGemm);
  for (const int64_t rows : {1, 32, 256}) {
    add("Batch/" + std::to_string(rows),
        [=](benchmark::State& state) { RunBatch(state, rows); });
  }
  const std::pair<const char*, std::vector<int64_t>> kinds[] = {
      {"Decode", {1, 4, 32}}, {"Prefill", {512, 2048}}};
  for (const auto& [kind, sizes] : kinds) {
    for (const Model& model : kModels) {
      for (const Weights& weights : kWeights) {
        for (const int64_t tokens : sizes) {
          add(std::string(kind) + "/" + model.name + "/" + weights.name + "/" +
                  std::to_string(tokens),
              [=](benchmark::State& state) {
                RunLayer(state, model, weights, tokens);
              });
        }
      }
    }
  }
}

}  // namespace
}  // namespace expertmesh::expert

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  expertmesh::expert::Register();
  benchmark::RunSpecifiedBenchmarks();
}
