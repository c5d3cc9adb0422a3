#pragma once

// Activations between layers: f32, rounded to the router's type where they
// enter a matrix product.

#include <algorithm>
#include <cstdint>

#include "services/core/dtype.h"
#include "services/core/worker_pool.h"
#include "services/linalg/buffer.h"
#include "services/linalg/gemm.h"

namespace expertmesh::router {

// Input of a matrix product: [max_rows, width] of the router's type, sized
// once.
class MatmulInput {
 public:
  MatmulInput() = default;
  MatmulInput(DType dtype, int64_t max_rows, int64_t width)
      : dtype_(dtype),
        width_(width),
        buffer_(max_rows * width * DTypeBytes(dtype)) {}

  // Rounds one row of f32 into place. Rows may be stored from several threads.
  void Store(int64_t row, const float* values);

  ActivationView view(int64_t first_row = 0) const {
    return {buffer_.data() + first_row * width_ * DTypeBytes(dtype_), dtype_,
            width_};
  }

 private:
  DType dtype_ = DType::kF32;
  int64_t width_ = 0;
  Buffer buffer_;
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
