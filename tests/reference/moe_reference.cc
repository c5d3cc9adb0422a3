#include "tests/reference/moe_reference.h"

#include <cmath>
#include <random>

namespace expertmesh::reference {
namespace {

std::vector<float> RandomMatrix(std::mt19937& random, int count, int fan_in) {
  std::vector<float> values(count);
  for (float& value : values) {
    const double uniform = random() / 4294967296.0;  // [0, 1)
    value = static_cast<float>((2 * uniform - 1) * std::sqrt(3.0 / fan_in));
  }
  return values;
}

// y [rows] = w [rows, columns] x [columns].
std::vector<double> Multiply(const float* w, int rows, int columns,
                             const double* x) {
  std::vector<double> y(rows, 0.0);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) y[r] += w[r * columns + c] * x[c];
  }
  return y;
}

bool Contains(const std::vector<int>& ids, int id) {
  for (const int other : ids) {
    if (other == id) return true;
  }
  return false;
}

}  // namespace

MoeLayer RandomMoeLayer(int num_experts, int top_k, int hidden_size,
                        int intermediate_size, bool norm_topk_prob,
                        uint32_t seed) {
  std::mt19937 random(seed);
  const int expert_size = hidden_size * intermediate_size;
  MoeLayer layer;
  layer.num_experts = num_experts;
  layer.top_k = top_k;
  layer.hidden_size = hidden_size;
  layer.intermediate_size = intermediate_size;
  layer.norm_topk_prob = norm_topk_prob;
  layer.gate = RandomMatrix(random, num_experts * hidden_size, hidden_size);
  layer.gate_proj =
      RandomMatrix(random, num_experts * expert_size, hidden_size);
  layer.up_proj = RandomMatrix(random, num_experts * expert_size, hidden_size);
  layer.down_proj =
      RandomMatrix(random, num_experts * expert_size, intermediate_size);
  return layer;
}

GateResult RunGate(const MoeLayer& layer, const float* x) {
  const std::vector<double> wide(x, x + layer.hidden_size);
  GateResult result;
  result.logits = Multiply(layer.gate.data(), layer.num_experts,
                           layer.hidden_size, wide.data());
  double sum = 0;
  for (const double logit : result.logits) sum += std::exp(logit);
  for (const double logit : result.logits) {
    result.scores.push_back(std::exp(logit) / sum);
  }
  std::vector<int> chosen;
  for (int k = 0; k < layer.top_k; ++k) {
    int best = -1;
    for (int e = 0; e < layer.num_experts; ++e) {
      if (Contains(chosen, e)) continue;
      if (best < 0 || result.scores[e] > result.scores[best]) best = e;
    }
    chosen.push_back(best);
  }
  double mass = 0;
  for (int e = 0; e < layer.num_experts; ++e) {
    if (!Contains(chosen, e)) continue;
    result.ids.push_back(e);
    result.weights.push_back(result.scores[e]);
    mass += result.scores[e];
  }
  if (layer.norm_topk_prob) {
    for (double& weight : result.weights) weight /= mass;
  }
  return result;
}

std::vector<double> RunExpert(const MoeLayer& layer, int expert,
                              const float* x) {
  const int hidden = layer.hidden_size;
  const int intermediate = layer.intermediate_size;
  const int offset = expert * hidden * intermediate;
  const std::vector<double> wide(x, x + hidden);
  std::vector<double> h = Multiply(layer.gate_proj.data() + offset,
                                   intermediate, hidden, wide.data());
  const std::vector<double> up = Multiply(layer.up_proj.data() + offset,
                                          intermediate, hidden, wide.data());
  for (int i = 0; i < intermediate; ++i) {
    h[i] = h[i] / (1 + std::exp(-h[i])) * up[i];
  }
  return Multiply(layer.down_proj.data() + offset, hidden, intermediate,
                  h.data());
}

std::vector<double> RunMoe(const MoeLayer& layer, const float* x) {
  const GateResult gate = RunGate(layer, x);
  std::vector<double> y(layer.hidden_size, 0.0);
  for (int k = 0; k < layer.top_k; ++k) {
    const std::vector<double> row = RunExpert(layer, gate.ids[k], x);
    for (int i = 0; i < layer.hidden_size; ++i) {
      y[i] += gate.weights[k] * row[i];
    }
  }
  return y;
}

}  // namespace expertmesh::reference
