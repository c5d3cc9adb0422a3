#pragma once

// Matrix product of activations with packed weights.
//
// Contract on bits (design decision: results are a function of the request):
// y[m, n] depends only on row m of x and on the weights.
//   - Quantized weights: a sum of integers, exact and so the same everywhere.
//   - f32 activations: one chain of fused multiply-adds over k ascending, which
//     every instruction set gives alike.
//   - bf16 activations with bf16 weights: an instruction set may define another
//     order (AVX512_BF16 sums pairs, AMX blocks of 32), but one and the same
//     for every M, every panel split and every thread count.

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "services/core/dtype.h"
#include "services/core/worker_pool.h"
#include "services/linalg/packed_matrix.h"

namespace expertmesh {

// Rows as QuantizeRow leaves them.
struct QuantizedView {
  const uint8_t* codes = nullptr;  // [rows, k and its padding]
  const float* scales = nullptr;   // [rows]
  int64_t stride = 0;              // between rows of codes
};

// Activations [rows, k], f32 or bf16, rows `stride` elements apart; for
// quantized weights, the same rows in codes.
struct ActivationView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;
  QuantizedView quantized = {};
};

// y[m, n] = sum over k of x[m, k] * w[n, k], for n in the given panels only.
//   x  [num_rows, w.k()]: x.quantized for quantized weights, else x.data
//   y  [num_rows, y_stride] f32, columns of the panels overwritten (real
//   columns
//      only, never padding)
// One thread; allocates nothing once warm.
void GemmPanels(const ActivationView& x, int64_t num_rows,
                const PackedMatrix& w, int64_t first_panel, int64_t last_panel,
                float* y, int64_t y_stride);

// One panel into a buffer of its own: y [num_rows, y_stride] begins with the
// panel's first output. One thread; allocates nothing once warm.
void GemmPanel(const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
               int64_t panel, float* y, int64_t y_stride);

// The whole product, panels spread over the pool.
void Gemm(const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
          float* y, int64_t y_stride, WorkerPool& pool);

// The instruction set in use: "portable", "avx2", "avx512", "avx512vnni",
// "avx512bf16", "amx". Chosen once from the CPU; the environment variable
// EXPERTMESH_ISA may name another it has.
absl::string_view IsaName();

// The order of the sums of products with weights of this format: two services
// of one order give the same bits. "integer", "chain", "pairs", "tiles".
absl::string_view SumOrder(WeightFormat format);

}  // namespace expertmesh
