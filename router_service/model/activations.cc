#include "router_service/model/activations.h"

#include <cstring>

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {

void MatmulInput::Store(int64_t row, const float* values) {
  if (codes_) codes_->Store(row, values);
  if (!has_plain_) return;
  if (dtype_ == DType::kF32) {
    std::memcpy(plain_.as<float>() + row * width_, values,
                width_ * sizeof(float));
  } else {
    ConvertToBF16(values, width_, plain_.as<BF16>() + row * width_);
  }
}

}  // namespace expertmesh::router
