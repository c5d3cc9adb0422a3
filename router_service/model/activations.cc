#include "router_service/model/activations.h"

#include <cstring>

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {

void MatmulInput::Store(int64_t row, const float* values) {
  if (dtype_ == DType::kF32) {
    std::memcpy(buffer_.as<float>() + row * width_, values,
                width_ * sizeof(float));
  } else {
    ConvertToBF16(values, width_, buffer_.as<BF16>() + row * width_);
  }
  if (codes_) codes_->Store(row, values);
}

}  // namespace expertmesh::router
