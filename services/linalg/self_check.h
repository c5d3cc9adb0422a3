#pragma once

// Whether a row's product depends on its company on this machine, and the way
// out where it does.

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "services/linalg/gemm.h"
#include "services/linalg/isa/kernels.h"

namespace expertmesh {

// Multiplies the first and the last panel of `w` with rows of pseudo-random
// activations of type `dtype`, one at a time and many together, and compares
// the bits (design decision: results are a function of the request). For each
// shape at load: takes microseconds to milliseconds.
// Errors: INTERNAL naming the shape and the instruction set.
absl::Status CheckRowsAgree(const PackedMatrix& w, DType dtype);

// The same of random weights [n, k], for before any are packed.
absl::Status CheckRowsAgree(WeightFormat format, int64_t n, int64_t k,
                            DType dtype);

// Likewise for another product with the arguments of GemmPanel.
using PanelProduct = absl::FunctionRef<void(
    const ActivationView& x, int64_t num_rows, const PackedMatrix& w,
    int64_t panel, float* y, int64_t y_stride)>;
absl::Status CheckRowsAgree(const PackedMatrix& w, DType dtype,
                            PanelProduct product);

// Runs `check` with each of the instruction sets that may be used, fastest
// first, and stays with the first one that passes; what fails is logged. One
// that EXPERTMESH_ISA demands is the only one. While no kernel runs: at load.
// Errors: those of `check` with the fastest, when none passes.
absl::Status UseIsaThatPasses(absl::FunctionRef<absl::Status()> check);

// Likewise among `candidates`, one at least.
absl::Status UseIsaThatPasses(absl::Span<const Isa> candidates,
                              absl::FunctionRef<absl::Status()> check);

}  // namespace expertmesh
