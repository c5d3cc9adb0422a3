#pragma once

// Change of a weight's element type at load.

#include "absl/status/statusor.h"
#include "services/core/dtype.h"
#include "services/linalg/buffer.h"
#include "services/linalg/tensor_view.h"

namespace expertmesh::expert {

// The elements of `source` as `dtype`, in the same order. To f32 is exact; to
// bf16 rounds to nearest, ties to even.
// Errors: INVALID_ARGUMENT for f16, which is only ever kept, never made.
absl::StatusOr<Buffer> ConvertElements(const TensorView& source, DType dtype);

}  // namespace expertmesh::expert
