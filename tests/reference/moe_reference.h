#pragma once

// A whole MoE layer in plain loops and double precision, as the papers state
// it: softmax gate, top-k, SwiGLU experts, weighted sum. It shares no code with
// the product, so that both being wrong alike is unlikely.
// Source: arXiv:1701.06538, arXiv:2002.05202.

#include <cstdint>
#include <vector>

namespace expertmesh::reference {

struct MoeLayer {
  int num_experts = 0;
  int top_k = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  bool norm_topk_prob = false;
  std::vector<float> gate;       // [num_experts, hidden_size]
  std::vector<float> gate_proj;  // [num_experts, intermediate, hidden]
  std::vector<float> up_proj;    // [num_experts, intermediate, hidden]
  std::vector<float> down_proj;  // [num_experts, hidden, intermediate]
};

// A layer with weights that are a function of `seed`, of a size that keeps
// activations near 1.
MoeLayer RandomMoeLayer(int num_experts, int top_k, int hidden_size,
                        int intermediate_size, bool norm_topk_prob,
                        uint32_t seed);

// What the gate makes of one token x [hidden_size].
struct GateResult {
  std::vector<double> logits;   // [num_experts]
  std::vector<double> scores;   // [num_experts] softmax
  std::vector<int> ids;         // [top_k] ascending
  std::vector<double> weights;  // [top_k]
};
GateResult RunGate(const MoeLayer& layer, const float* x);

// y [hidden_size] of one expert for x [hidden_size].
std::vector<double> RunExpert(const MoeLayer& layer, int expert,
                              const float* x);

// y [hidden_size] of the layer for x [hidden_size].
std::vector<double> RunMoe(const MoeLayer& layer, const float* x);

}  // namespace expertmesh::reference
