#pragma once

// Whether a device computes what it should.

#include "absl/status/status.h"
#include "expert_service/kernels/cuda/cuda_backend.h"
#include "expert_service/kernels/grouped_ffn.h"

namespace expertmesh::expert {

// Sizes of the experts that are tried, with rows for every kernel.
CudaBackendOptions CheckedOptions(const CudaBackendOptions& options);

// Sends rows of pseudo-random experts through a backend of CheckedOptions and
// compares with the CPU; and unless it is fast, one row alone with the same row
// among others, bit for bit. Takes milliseconds.
// Errors: INTERNAL saying what is wrong; those of the backend.
absl::Status CheckArithmetic(const CudaBackendOptions& options,
                             CudaBackend& backend);

}  // namespace expertmesh::expert
