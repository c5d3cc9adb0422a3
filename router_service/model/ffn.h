#pragma once

// The router's own feed-forward networks: dense layers and shared experts.

#include <cstdint>

#include "router_service/model/activations.h"
#include "router_service/model/dense_weights.h"

namespace expertmesh::router {

// down(silu(gate x) · up x). Owns its workspace; one thread calls it.
// Source: arXiv:2002.05202 (SwiGLU).
class Ffn {
 public:
  Ffn(const ActivationType& type, int64_t max_rows, int64_t intermediate_size);

  // x [num_rows, hidden]; y [num_rows, hidden] f32, overwritten.
  void Run(const FfnWeights& weights, const ActivationView& x, int64_t num_rows,
           float* y, WorkerPool& pool);

 private:
  Buffer gate_up_;            // [max_rows, 2 · intermediate] f32
  MatmulInput intermediate_;  // [max_rows, intermediate]
};

}  // namespace expertmesh::router
