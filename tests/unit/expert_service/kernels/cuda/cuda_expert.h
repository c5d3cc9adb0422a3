#pragma once

// An expert in device memory and, for comparison, its weights as numbers.

#include <cmath>
#include <vector>

#include "expert_service/kernels/cuda/ffn_kernels.h"
#include "services/linalg/packed_matrix.h"
#include "tests/unit/expert_service/kernels/cuda/device_memory.h"
#include "tests/unit/services/linalg/isa_test_util.h"

namespace expertmesh::expert {

// The type of tensors that are packed in a format.
inline DType StoredType(WeightFormat format) {
  if (format == WeightFormat::kBF16) return DType::kBF16;
  return format == WeightFormat::kF16 ? DType::kF16 : DType::kF32;
}

// A quantized weight in multiples of its output's scale (panel_layout.h).
inline int CodeOf(const PackedMatrix& w, int64_t n, int64_t k) {
  const auto* codes =
      reinterpret_cast<const uint8_t*>(w.panel(n / kPanelWidth)) +
      sizeof(QuantizedPanelHeader);
  const int64_t column = n % kPanelWidth;
  if (w.format() == WeightFormat::kInt8) {
    return static_cast<int8_t>(
        codes[(k / 4 * kPanelWidth + column) * 4 + k % 4]);
  }
  const uint8_t* block = codes + k / 64 * kInt4BlockBytes;
  const uint8_t pair =
      block[kInt4StepBytes + (k % 64 / 8 * kPanelWidth + column) * 4 + k % 4];
  const int code = k % 8 < 4 ? pair % 16 : pair / 16;
  const uint8_t step = block[k % 64 / kInt4Group * kPanelWidth + column];
  return (code - kInt4Zero + step / 16) * (step % 16);
}

inline float ScaleOf(const PackedMatrix& w, int64_t n) {
  return reinterpret_cast<const QuantizedPanelHeader*>(w.panel(n / kPanelWidth))
      ->scales[n % kPanelWidth];
}

// A random matrix [n, k], packed on the host and as fragments on the device.
struct CudaTestMatrix {
  CudaTestMatrix(int64_t n, int64_t k, WeightFormat format, uint32_t seed)
      : n(n),
        k(k),
        format(format),
        tensor(RandomFloats(n * k, seed, 2.0f / std::sqrt(float(k))),
               StoredType(format)),
        packed(*PackedMatrix::Pack(tensor.View(n, k), format)),
        fragments(CudaMatrixBytes(n, k, format)) {
    const DeviceMemory panels(packed.panel(0), packed.size_bytes());
    EXPECT_EQ(
        LaunchRepackPanels(panels.data(), n, k, format, WeightOrder::kFragments,
                           fragments.data(), nullptr),
        cudaSuccess);
  }

  CudaMatrix View() const {
    return CudaMatrixAt(fragments.data(), n, k, format);
  }

  double At(int64_t output, int64_t i) const {
    if (!IsQuantized(format)) return tensor.f32[output * k + i];
    return static_cast<double>(CodeOf(packed, output, i)) *
           ScaleOf(packed, output);
  }

  int64_t n;
  int64_t k;
  WeightFormat format;
  TypedValues tensor;
  PackedMatrix packed;
  DeviceMemory fragments;
};

struct CudaTestExpert {
  CudaTestExpert(const FfnShape& shape, uint32_t seed)
      : gate(shape.intermediate_size, shape.hidden_size, shape.format, seed),
        up(shape.intermediate_size, shape.hidden_size, shape.format, seed + 1),
        down(shape.hidden_size, shape.intermediate_size, shape.format,
             seed + 2),
        view{gate.View(), up.View(), down.View()} {}

  CudaTestMatrix gate;
  CudaTestMatrix up;
  CudaTestMatrix down;
  CudaExpertView view;
};

}  // namespace expertmesh::expert
