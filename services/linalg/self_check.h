#pragma once

// Whether a row's product depends on its company on this machine.

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "services/linalg/gemm.h"

namespace expertmesh {

// Multiplies the first and the last panel of `w` with rows of pseudo-random
// activations of type `dtype`, one at a time and many together, and compares
// the bits (design decision: results are a function of the request). For each
// shape at load: takes microseconds to milliseconds.
// Errors: INTERNAL naming the shape and the instruction set.
absl::Status CheckRowsAgree(const PackedMatrix& w, DType dtype);

// Likewise for another product with the arguments of GemmPanel.
using PanelProduct = absl::FunctionRef<void(
    const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
    int64_t panel, float* y, int64_t y_stride)>;
absl::Status CheckRowsAgree(const PackedMatrix& w, DType dtype,
                            PanelProduct product);

}  // namespace expertmesh
