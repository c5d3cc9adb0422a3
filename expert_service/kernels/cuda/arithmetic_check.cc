#include "expert_service/kernels/cuda/arithmetic_check.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"
#include "services/core/worker_pool.h"
#include "services/linalg/activation_row.h"

namespace expertmesh::expert {
namespace {

// No multiple of a tile, and more tiles of k than one range has.
constexpr int64_t kHidden = 584;
constexpr int64_t kIntermediate = 72;
constexpr uint32_t kOffsets[] = {0, 40, 43};  // of two experts: many, and few
constexpr uint32_t kRows = kOffsets[2];
// CPUs round activations to codes where experts have them, devices to bf16.
constexpr double kMostError = 0.05;

std::vector<float> RandomValues(int64_t count, uint32_t seed, float scale) {
  std::mt19937 random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = scale * (static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
  }
  return values;
}

// Rounded towards zero; zero for what f16 has as subnormal numbers only.
uint16_t F16BitsOf(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  constexpr uint32_t kSmallest = (127 - 14) << 23;
  if (magnitude < kSmallest) return 0;
  return static_cast<uint16_t>((bits >> 16 & 0x8000u) |
                               ((magnitude - (112u << 23)) >> 13));
}

absl::StatusOr<PackedMatrix> RandomMatrix(int64_t n, int64_t k, uint32_t seed,
                                          WeightFormat format) {
  const std::vector<float> values =
      RandomValues(n * k, seed, 2.0f / std::sqrt(static_cast<float>(k)));
  const auto* const data = reinterpret_cast<const std::byte*>(values.data());
  if (format != WeightFormat::kF16) {
    return PackedMatrix::Pack(TensorView{data, DType::kF32, {n, k}}, format);
  }
  std::vector<uint16_t> halves;
  for (const float value : values) halves.push_back(F16BitsOf(value));
  return PackedMatrix::Pack(
      TensorView{reinterpret_cast<const std::byte*>(halves.data()),
                 DType::kF16,
                 {n, k}},
      format);
}

absl::StatusOr<PackedExpert> RandomExpert(uint32_t seed, WeightFormat format) {
  PackedExpert expert;
  ASSIGN_OR_RETURN(expert.gate_proj,
                   RandomMatrix(kIntermediate, kHidden, seed, format));
  ASSIGN_OR_RETURN(expert.up_proj,
                   RandomMatrix(kIntermediate, kHidden, seed + 1, format));
  ASSIGN_OR_RETURN(expert.down_proj,
                   RandomMatrix(kHidden, kIntermediate, seed + 2, format));
  return expert;
}

// Some outputs added up, and one alone.
constexpr uint32_t kSumOffsets[] = {0, 3};
constexpr uint32_t kSumRows[] = {41, 0, 39};
constexpr float kSumWeights[] = {0.3f, 0.45f, 0.7f};
constexpr uint32_t kLoneRows[] = {17};

constexpr size_t kRowBytes = RowBytes(DType::kBF16, kHidden);

// All rows, or one: what comes out.
class Batch {
 public:
  Batch(GroupedFfn& ffn, const std::vector<const LoadedExpert*>& experts)
      : ffn_(ffn),
        experts_(experts),
        x_(ffn.NewRowBuffer(kRows * kRowBytes)),
        y_(ffn.NewRowBuffer(kRows * kRowBytes)) {
    const std::vector<float> values = RandomValues(kRows * kHidden, 7, 1.0f);
    rows_.resize(kRows * kRowBytes);
    for (uint32_t row = 0; row < kRows; ++row) {
      StoreRow(&values[row * kHidden], kHidden, DType::kBF16,
               &rows_[row * kRowBytes]);
    }
  }

  absl::StatusOr<std::string> RunAll() {
    std::memcpy(x_.get(), rows_.data(), rows_.size());
    return Run(experts_, kOffsets, kRows);
  }
  // The lone row and, behind it, the sum.
  absl::StatusOr<std::string> RunReduced() {
    const RowReduction reduction = {kSumOffsets, kSumRows, kSumWeights,
                                    kLoneRows};
    std::memcpy(x_.get(), rows_.data(), rows_.size());
    RETURN_IF_ERROR(ffn_.Run(
        {experts_, kOffsets, DType::kBF16, x_.get(), y_.get(), &reduction}));
    const auto* const y = reinterpret_cast<const char*>(y_.get());
    return std::string(y, kRowBytes)
        .append(y + RowReduction::SumsAt(kRowBytes), kHidden * sizeof(float));
  }
  absl::StatusOr<std::string> RunAlone(uint32_t row) {
    std::memcpy(x_.get(), &rows_[row * kRowBytes], kRowBytes);
    const uint32_t offsets[] = {0, 1};
    return Run({&experts_[row >= kOffsets[1] ? 1 : 0], 1}, offsets, 1);
  }

 private:
  absl::StatusOr<std::string> Run(absl::Span<const LoadedExpert* const> experts,
                                  absl::Span<const uint32_t> offsets,
                                  size_t rows) {
    RETURN_IF_ERROR(
        ffn_.Run({experts, offsets, DType::kBF16, x_.get(), y_.get()}));
    return std::string(reinterpret_cast<const char*>(y_.get()),
                       rows * kRowBytes);
  }

  GroupedFfn& ffn_;
  const std::vector<const LoadedExpert*> experts_;
  const RowBuffer x_;
  const RowBuffer y_;
  std::vector<std::byte> rows_;
};

// What RunReduced should give, by what RunAll gave.
std::string Reduced(const std::string& rows) {
  std::vector<float> sum(kHidden);
  for (uint32_t i = 0; i < kSumOffsets[1]; ++i) {
    AddScaledRow(
        kSumWeights[i],
        reinterpret_cast<const std::byte*>(&rows[kSumRows[i] * kRowBytes]),
        DType::kBF16, 0, kHidden, sum.data());
  }
  return rows.substr(kLoneRows[0] * kRowBytes, kRowBytes)
      .append(reinterpret_cast<const char*>(sum.data()),
              kHidden * sizeof(float));
}

// Of the differences, by what is wanted; NaN where either has one.
double RelativeError(const std::string& got, const std::string& wanted) {
  std::vector<float> x(kRows * kHidden), y(kRows * kHidden);
  for (const auto& [from, to] : {std::pair(&got, &x), std::pair(&wanted, &y)}) {
    AddScaledRow(1.0f, reinterpret_cast<const std::byte*>(from->data()),
                 DType::kBF16, 0, kRows * kHidden, to->data());
  }
  double off = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    off += std::pow(static_cast<double>(x[i]) - y[i], 2);
    size += std::pow(static_cast<double>(y[i]), 2);
  }
  return std::sqrt(off / size);
}

}  // namespace

CudaBackendOptions CheckedOptions(const CudaBackendOptions& options) {
  CudaBackendOptions checked = options;
  checked.hidden_size = kHidden;
  checked.intermediate_size = kIntermediate;
  checked.max_rows = kRows;
  checked.max_groups = 2;
  checked.memory_fraction = 1;
  checked.metrics = {};
  return checked;
}

absl::Status CheckArithmetic(const CudaBackendOptions& options,
                             CudaBackend& backend) {
  const WeightFormat format = options.format;
  std::vector<PackedExpert> packed;
  std::vector<std::shared_ptr<const LoadedExpert>> loaded;
  for (const uint32_t seed : {1u, 4u}) {
    ASSIGN_OR_RETURN(packed.emplace_back(), RandomExpert(seed, format));
    ASSIGN_OR_RETURN(loaded.emplace_back(), backend.Load(packed.back()));
  }
  WorkerPool pool(1);
  const auto cpu =
      MakeGroupedFfnCpu({kHidden, kIntermediate, kRows, Activation::kSiluGlu,
                         IsQuantized(format)},
                        &pool);
  Batch on_cpu(*cpu, {&packed[0], &packed[1]});
  Batch on_device(backend.ffn(), {loaded[0].get(), loaded[1].get()});
  ASSIGN_OR_RETURN(const std::string wanted, on_cpu.RunAll());
  ASSIGN_OR_RETURN(const std::string got, on_device.RunAll());
  const double error = RelativeError(got, wanted);
  if (!(error <= kMostError)) {
    return absl::InternalError(
        absl::StrCat("the CUDA device computes wrongly: outputs of ",
                     WeightFormatName(format), " experts are off by ", error,
                     " of their size; --device=cpu does without it"));
  }
  if (options.is_fast) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string reduced, on_device.RunReduced());
  if (reduced != Reduced(got)) {
    return absl::InternalError(
        "the CUDA device computes wrongly: sums of rows have other bits than "
        "the CPU's; --device=cpu does without it");
  }
  for (const uint32_t row : {0u, 39u, 42u}) {
    ASSIGN_OR_RETURN(const std::string alone, on_device.RunAlone(row));
    if (alone == got.substr(row * kRowBytes, kRowBytes)) continue;
    return absl::InternalError(absl::StrCat(
        "the CUDA device computes wrongly: bits of a row with ",
        WeightFormatName(format),
        " experts depend on other rows; --device=cpu does without it"));
  }
  return absl::OkStatus();
}

}  // namespace expertmesh::expert
