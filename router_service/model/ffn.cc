#include "router_service/model/ffn.h"

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {

Ffn::Ffn(const ActivationType& type, int64_t max_rows,
         int64_t intermediate_size)
    : gate_up_(max_rows * 2 * intermediate_size * sizeof(float)),
      intermediate_(type, max_rows, intermediate_size) {}

void Ffn::Run(const FfnWeights& weights, const ActivationView& x,
              int64_t num_rows, float* y, WorkerPool& pool) {
  const int64_t width = weights.intermediate_size;
  float* gate_up = gate_up_.as<float>();
  Gemm(x, num_rows, weights.gate_up, gate_up, 2 * width, pool);
  ForRows(pool, num_rows, [&](int64_t row) {
    float* gate = gate_up + row * 2 * width;
    SiluMul(gate, gate + width, width, gate);
    intermediate_.Store(row, gate);
  });
  Gemm(intermediate_.view(), num_rows, weights.down_proj, y,
       weights.down_proj.n(), pool);
}

}  // namespace expertmesh::router
