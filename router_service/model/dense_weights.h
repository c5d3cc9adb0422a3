#pragma once

// The router's share of a checkpoint: everything but the experts.

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/checkpoint.h"
#include "services/linalg/gemm.h"
#include "services/pack_cache/pack_cache.h"

namespace expertmesh::router {

// A gated feed-forward network of the router itself: a dense layer's, or a
// shared expert.
struct FfnWeights {
  PackedMatrix gate_up;  // [2 · intermediate, hidden]: gate rows, then up rows
  PackedMatrix down_proj;  // [hidden, intermediate]
  int64_t intermediate_size = 0;
};

struct AttentionWeights {
  std::vector<float> norm;      // [hidden]
  PackedMatrix qkv;             // [q + k + v, hidden]
  std::vector<float> qkv_bias;  // [q + k + v], or empty
  PackedMatrix o_proj;          // [hidden, q]
  std::vector<float> o_bias;    // [hidden], or empty
  // [head_dim] or the whole projection, by ModelConfig::qk_norm; or empty.
  std::vector<float> q_norm;
  std::vector<float> k_norm;
};

struct LayerWeights {
  AttentionWeights attention;
  std::vector<float> ffn_norm;       // [hidden]
  std::optional<FfnWeights> dense;   // layers that are not MoE
  PackedMatrix gate;                 // MoE layers: [num_experts, hidden]
  std::optional<FfnWeights> shared;  // MoE layers with a shared expert
  PackedMatrix shared_gate;          // [1, hidden], where the family has one
};

struct DenseLoadOptions {
  // int8 or int4 for all matrices but the gates', whose choices decide more
  // than their few bytes cost; unset keeps the checkpoint's type.
  std::optional<WeightFormat> format = std::nullopt;
  // Spreads the packing of each matrix; unset: the caller's thread alone.
  WorkerPool* pool = nullptr;
  // Keeps packed matrices, a file for each layer; unset: none.
  PackCache* cache = nullptr;
  // Called with the bytes of a matrix in the checkpoint, once it is there.
  std::function<void(int64_t bytes)> progress = nullptr;
};

// Immutable; keeps a view of the embedding in the checkpoint, which must
// outlive it.
struct DenseWeights {
  TensorView embed_tokens;  // [vocab, hidden], mapped
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden]
  PackedMatrix lm_head;           // [vocab, hidden]
  size_t size_bytes = 0;          // of all packed matrices
  bool quantized = false;         // all but the gates'

  // Errors: FAILED_PRECONDITION naming file and tensor.
  static absl::StatusOr<DenseWeights> Load(const Checkpoint& checkpoint,
                                           const DenseLoadOptions& options);
};

}  // namespace expertmesh::router
