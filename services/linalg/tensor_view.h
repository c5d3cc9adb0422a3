#pragma once

// A tensor somewhere else: pointer, type, shape. Owns nothing.

#include <cstddef>
#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "services/core/dtype.h"

namespace expertmesh {

// Row-major. `data` may be unaligned (tensors of a mapped file are): read it
// with memcpy or unaligned loads only.
struct TensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  absl::InlinedVector<int64_t, 4> shape;

  int64_t num_elements() const {
    int64_t n = 1;
    for (const int64_t dim : shape) n *= dim;
    return n;
  }
  size_t size_bytes() const { return num_elements() * DTypeBytes(dtype); }
};

}  // namespace expertmesh
