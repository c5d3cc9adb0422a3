#pragma once

// Matrix product of activations with packed weights.
//
// Contract on bits (design decision: results are a function of the request):
// y[m, n] depends only on row m of x and on the weights. For f32 activations it
// is one chain of fused multiply-adds over k ascending, which every instruction
// set gives alike. For bf16 activations with bf16 weights an instruction set
// may define another order (AVX512_BF16 sums pairs), but one and the same for
// every M, every panel split and every thread count.

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/core/dtype.h"
#include "services/core/worker_pool.h"
#include "services/linalg/buffer.h"
#include "services/linalg/tensor_view.h"

namespace expertmesh {

// Outputs per panel. A panel is the unit of work splitting.
inline constexpr int64_t kPanelWidth = 64;

// Activations [rows, k], f32 or bf16, rows `stride` elements apart.
struct ActivationView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;
};

// A weight matrix [n, k] packed into panels of kPanelWidth outputs:
//   f32:       [n/64][k][64]
//   bf16, f16: [n/64][ceil(k/2)][64][2]
// Padding is zero. Immutable after packing; thread-safe.
class PackedMatrix {
 public:
  PackedMatrix() = default;

  // Packs the rows of `parts` one under the other: [sum of rows, k]. All parts
  // must be 2-D with equal k and dtype, which the matrix keeps.
  // Errors: INVALID_ARGUMENT on shapes that do not fit.
  static absl::StatusOr<PackedMatrix> Pack(absl::Span<const TensorView> parts);
  static absl::StatusOr<PackedMatrix> Pack(const TensorView& weight);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  DType dtype() const { return dtype_; }
  int64_t num_panels() const { return (n_ + kPanelWidth - 1) / kPanelWidth; }
  // Start of a panel, 64-byte aligned.
  const std::byte* panel(int64_t index) const {
    return buffer_.data() + index * panel_bytes_;
  }
  size_t size_bytes() const { return buffer_.size(); }

 private:
  int64_t n_ = 0;
  int64_t k_ = 0;
  DType dtype_ = DType::kF32;
  int64_t panel_bytes_ = 0;
  Buffer buffer_;
};

// y[m, n] = sum over k of x[m, k] * w[n, k], for n in the given panels only.
//   x  [num_rows, w.k()]
//   y  [num_rows, y_stride] f32, columns of the panels overwritten (real
//   columns
//      only, never padding)
// One thread; allocates nothing.
void GemmPanels(const ActivationView& x, int64_t num_rows,
                const PackedMatrix& w, int64_t first_panel, int64_t last_panel,
                float* y, int64_t y_stride);

// One panel into a buffer of its own: y [num_rows, y_stride] begins with the
// panel's first output. One thread; allocates nothing.
void GemmPanel(const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
               int64_t panel, float* y, int64_t y_stride);

// The whole product, panels spread over the pool.
void Gemm(const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
          float* y, int64_t y_stride, WorkerPool& pool);

// The instruction set in use: "portable", "avx2", "avx512", "avx512bf16".
// Chosen once from the CPU; the environment variable EXPERTMESH_ISA may name
// another it has. Part of the numerics id.
absl::string_view IsaName();

}  // namespace expertmesh
