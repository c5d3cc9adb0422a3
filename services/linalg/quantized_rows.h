#pragma once

// Activations as quantized weights take them.

#include <algorithm>
#include <cstdint>

#include "services/core/dtype.h"
#include "services/linalg/buffer.h"
#include "services/linalg/gemm.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh {

// Room for [max_rows, k] in codes and their scales, sized once. Different rows
// may be stored from different threads.
class QuantizedRows {
 public:
  QuantizedRows() = default;
  QuantizedRows(int64_t max_rows, int64_t k)
      : k_(k),
        stride_(PaddedQuantizedK(k) + kGap),
        codes_(static_cast<size_t>(max_rows * stride_)),
        scales_(static_cast<size_t>(max_rows) * sizeof(float)) {}

  // Quantizes one row [k] of f32 or BF16.
  template <typename T>
  void Store(int64_t row, const T* values) {
    scales_.as<float>()[row] =
        QuantizeRow(values, k_, codes_.as<uint8_t>() + row * stride_);
  }

  // Takes a row [k] that is in signed codes already.
  void StoreCodes(int64_t row, float scale, const int8_t* values) {
    scales_.as<float>()[row] = scale;
    uint8_t* codes = codes_.as<uint8_t>() + row * stride_;
    for (int64_t i = 0; i < k_; ++i) {
      codes[i] = static_cast<uint8_t>(values[i] + kActivationZero);
    }
    std::fill(codes + k_, codes + PaddedQuantizedK(k_),
              static_cast<uint8_t>(kActivationZero));
  }

  QuantizedView view(int64_t first_row = 0) const {
    return {codes_.as<uint8_t>() + first_row * stride_,
            scales_.as<float>() + first_row, stride_};
  }

 private:
  // Rows of a power of two would all meet in the same few sets of a cache.
  static constexpr int64_t kGap = 64;

  int64_t k_ = 0;
  int64_t stride_ = 0;
  Buffer codes_;
  Buffer scales_;
};

}  // namespace expertmesh
