#pragma once

// Activations between layers: f32, rounded to the router's type, or in codes
// for quantized weights, where they enter a matrix product.

#include <algorithm>
#include <cstdint>
#include <optional>

#include "services/core/dtype.h"
#include "services/core/worker_pool.h"
#include "services/linalg/buffer.h"
#include "services/linalg/gemm.h"
#include "services/linalg/quantized_rows.h"

namespace expertmesh::router {

// What activations are where they enter a product.
struct ActivationType {
  DType dtype = DType::kF32;
  bool plain = true;   // as `dtype`, for weights that are not quantized
  bool codes = false;  // for quantized ones
};

// Input of a matrix product: [max_rows, width], sized once.
class MatmulInput {
 public:
  MatmulInput() = default;
  MatmulInput(const ActivationType& type, int64_t max_rows, int64_t width)
      : dtype_(type.dtype),
        width_(width),
        plain_(type.plain ? max_rows * width * DTypeBytes(type.dtype) : 0),
        has_plain_(type.plain) {
    if (type.codes) codes_.emplace(max_rows, width);
  }

  // Rounds one row of f32 into place. Rows may be stored from several threads.
  void Store(int64_t row, const float* values);

  ActivationView view(int64_t first_row = 0) const {
    ActivationView view = {nullptr, dtype_, width_, {}};
    if (has_plain_) {
      view.data = plain_.data() + first_row * width_ * DTypeBytes(dtype_);
    }
    if (codes_) view.quantized = codes_->view(first_row);
    return view;
  }

 private:
  DType dtype_ = DType::kF32;
  int64_t width_ = 0;
  Buffer plain_;
  bool has_plain_ = false;
  std::optional<QuantizedRows> codes_;
};

// Runs body(row) for every row, on the pool where there are enough rows to pay
// for waking it.
template <typename Body>
void ForRows(WorkerPool& pool, int64_t num_rows, const Body& body) {
  constexpr int64_t kRowsPerTask = 8;
  const int64_t tasks = (num_rows + kRowsPerTask - 1) / kRowsPerTask;
  pool.ParallelFor(tasks, [&](int64_t task) {
    const int64_t last = std::min(num_rows, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < last; ++row) body(row);
  });
}

}  // namespace expertmesh::router
