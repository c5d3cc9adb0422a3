#include "router_service/model/ffn.h"

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {

Ffn::Ffn(DType dtype, int64_t max_rows, int64_t max_intermediate_size)
    : gate_up_(max_rows * 2 * max_intermediate_size * sizeof(float)),
      dtype_(dtype),
      intermediate_(max_rows * max_intermediate_size * DTypeBytes(dtype)) {}

void Ffn::Run(const FfnWeights& weights, const ActivationView& x,
              int64_t num_rows, float* y, WorkerPool& pool) {
  const int64_t width = weights.intermediate_size;
  float* gate_up = gate_up_.as<float>();
  Gemm(x, num_rows, weights.gate_up, gate_up, 2 * width, pool);
  ForRows(pool, num_rows, [&](int64_t row) {
    float* gate = gate_up + row * 2 * width;
    SiluMul(gate, gate + width, width, gate);
    if (dtype_ == DType::kBF16) {
      ConvertToBF16(gate, width, intermediate_.as<BF16>() + row * width);
    }
  });
  const ActivationView intermediate =
      dtype_ == DType::kBF16
          ? ActivationView{intermediate_.data(), DType::kBF16, width}
          : ActivationView{gate_up, DType::kF32, 2 * width};
  Gemm(intermediate, num_rows, weights.down_proj, y, weights.down_proj.n(),
       pool);
}

}  // namespace expertmesh::router
