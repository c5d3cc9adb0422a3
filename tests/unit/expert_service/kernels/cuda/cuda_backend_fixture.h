#pragma once

// Experts and batches on a device, real or emulated.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "expert_service/kernels/cuda/cuda_backend.h"
#include "services/linalg/activation_row.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh::expert {

inline constexpr int64_t kHidden = 72;
inline constexpr int64_t kIntermediate = 136;
inline constexpr int64_t kMaxRows = 48;
inline constexpr int kNumExperts = 3;

// A matrix as a tensor of a type.
inline TypedValues RandomTensor(int64_t n, int64_t k, DType type,
                                uint32_t seed) {
  const float scale = 2.0f / std::sqrt(static_cast<float>(k));
  return TypedValues(RandomFloats(n * k, seed, scale), type);
}

// A batch in row buffers of a kernel.
struct Batch {
  Batch(GroupedFfn& ffn, std::vector<const LoadedExpert*> of,
        std::vector<uint32_t> rows_of_group, DType type, uint32_t seed)
      : experts(std::move(of)), dtype(type) {
    for (const uint32_t rows : rows_of_group) {
      offsets.push_back(offsets.back() + rows);
    }
    const size_t row_bytes = RowBytes(type, kHidden);
    bytes = offsets.back() * row_bytes;
    x = ffn.NewRowBuffer(bytes);
    y = ffn.NewRowBuffer(bytes);
    const std::vector<float> values =
        RandomFloats(offsets.back() * kHidden, seed);
    for (uint32_t row = 0; row < offsets.back(); ++row) {
      StoreRow(&values[row * kHidden], kHidden, type,
               x.get() + row * row_bytes);
    }
  }
  GroupedRows rows() const {
    return {experts, offsets, dtype, x.get(), y.get()};
  }
  std::string Y() const {
    return std::string(reinterpret_cast<const char*>(y.get()), bytes);
  }
  std::vector<float> YAsF32() const {
    std::vector<float> values(offsets.back() * kHidden);
    for (uint32_t row = 0; row < offsets.back(); ++row) {
      AddScaledRow(1.0f, y.get() + row * RowBytes(dtype, kHidden), dtype, 0,
                   kHidden, &values[row * kHidden]);
    }
    return values;
  }

  std::vector<const LoadedExpert*> experts;
  std::vector<uint32_t> offsets = {0};
  DType dtype;
  size_t bytes = 0;
  RowBuffer x, y;
};

class CudaBackendTest : public testing::Test {
 protected:
  static CudaBackendOptions Options(WeightFormat format) {
    CudaBackendOptions options;
    options.hidden_size = kHidden;
    options.intermediate_size = kIntermediate;
    options.format = format;
    options.max_rows = kMaxRows;
    options.max_groups = kNumExperts;
    return options;
  }
  void Open(WeightFormat format) {
    CudaBackendOptions options = Options(format);
    options.metrics = metrics_;
    options.is_fast = is_fast_;
    auto backend = OpenCudaBackend(options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    for (int e = 0; e < kNumExperts; ++e) {
      packed_.push_back(Packed(format, e));
      auto expert = backend_->Load(packed_.back());
      ASSERT_TRUE(expert.ok()) << expert.status();
      experts_.push_back(*std::move(expert));
    }
  }
  static PackedExpert Packed(WeightFormat format, uint32_t seed) {
    const DType type = format == WeightFormat::kBF16  ? DType::kBF16
                       : format == WeightFormat::kF16 ? DType::kF16
                                                      : DType::kF32;
    const auto pack = [&](int64_t n, int64_t k, uint32_t part) {
      const TypedValues values = RandomTensor(n, k, type, 3 * seed + part);
      return *PackedMatrix::Pack(values.View(n, k), format);
    };
    return PackedExpert(pack(kIntermediate, kHidden, 1),
                        pack(kIntermediate, kHidden, 2),
                        pack(kHidden, kIntermediate, 3));
  }
  std::vector<const LoadedExpert*> Experts() const {
    std::vector<const LoadedExpert*> experts;
    for (const auto& expert : experts_) experts.push_back(expert.get());
    return experts;
  }
  GroupedFfn& ffn() { return backend_->ffn(); }

  CudaMetrics metrics_;
  bool is_fast_ = false;
  std::unique_ptr<CudaBackend> backend_;
  std::vector<PackedExpert> packed_;
  std::vector<std::shared_ptr<const LoadedExpert>> experts_;
};

}  // namespace expertmesh::expert
