#pragma once

// The layer loop: token batch in, hidden states and logits out.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "router_service/model/attention.h"
#include "router_service/model/micro_batch.h"
#include "router_service/model/moe_layer.h"
#include "router_service/model/step_times.h"

namespace expertmesh::router {

struct TransformerOptions {
  DType dtype = DType::kF32;  // of matrix inputs that are not quantized
  int64_t max_tokens = 512;   // of one step
  int64_t max_context_tokens = 0;
  CapacityOptions capacity;
  int micro_batches = 1;  // of a step: 1, 2, or 0: by measured times
};

// Sees the routing of every MoE layer of a step, on the engine's thread, after
// the layer's rows are back; knows whom they are for.
class RoutingObserver {
 public:
  virtual ~RoutingObserver() = default;
  // Tokens of `routing` and `plan` are those of the step from `first_token` on;
  // a step may come in parts.
  virtual void OnLayer(int64_t layer, int64_t first_token,
                       const Routing& routing, const DispatchPlan& plan) = 0;
  // A row of this token of the step went to an expert service of another
  // numerics_id than the mesh's: what follows from it may have other bits. Told
  // for each row, and again for each time it was sent.
  virtual void OnCrossed(int64_t /*token*/) {}
  // Whether anybody still wants this token of the step. Asked now and then
  // while rows wait for an expert that nobody serves.
  virtual bool IsWanted(int64_t /*token*/) { return true; }
};

// Owns the workspace of a step, sized once: a steady step allocates nothing.
// One thread.
class Transformer {
 public:
  // All references must outlive this.
  Transformer(const ModelConfig& config, const DenseWeights& weights,
              const TransformerOptions& options, Dispatcher* dispatcher,
              WorkerPool* pool);

  // Runs all layers over the batch: at most max_tokens tokens, at positions
  // below max_context_tokens. Afterwards token_status() says which tokens could
  // not be computed because an expert service failed; the others are exact.
  // `observer` may be null.
  void Forward(const TokenBatch& batch, KvCache* cache,
               RoutingObserver* observer);

  // [num_tokens] of the last batch.
  const std::vector<absl::Status>& token_status() const {
    return token_status_;
  }

  // Logits of some tokens of the last batch.
  //   rows    indices of tokens
  //   logits  [rows.size(), vocab_size], overwritten
  // At most kMaxLogitRows rows a call.
  static constexpr int64_t kMaxLogitRows = 64;
  void Logits(absl::Span<const int32_t> rows, float* logits);

  // The engine adds its own phases.
  StepTimes& times() { return times_; }

  void set_capacity(const CapacityOptions& capacity) {
    moe_.set_capacity(capacity);
  }

 private:
  void Embed(const TokenBatch& batch);
  void Split(const TokenBatch& batch, int count);
  void RunAttention(int64_t layer, const MicroBatch& part, KvCache* cache);
  // Runs a dense FFN, or sends rows to experts.
  void BeginFfn(int64_t layer, MicroBatch* part);
  // Adds what the experts gave, where BeginFfn sent rows.
  void FinishFfn(int64_t layer, MicroBatch* part, RoutingObserver* observer);
  // Norms the residual stream into normed_ and, rounded, into x_.
  void Norm(const std::vector<float>& weight, const MicroBatch& part);
  void AddToResidual(const MicroBatch& part);
  float* Rows(Buffer& buffer, const MicroBatch& part) {
    return buffer.as<float>() + part.first_token * config_.hidden_size;
  }

  const ModelConfig& config_;
  const DenseWeights& weights_;
  WorkerPool& pool_;
  StepTimes times_;
  Attention attention_;
  Ffn dense_ffn_;
  MoeLayer moe_;
  MicroBatchPolicy micro_batch_policy_;
  std::vector<std::unique_ptr<MicroBatch>> parts_;  // of the step
  size_t num_parts_ = 0;
  Buffer residual_;  // [max_tokens, hidden] f32, the residual stream
  Buffer normed_;    // [max_tokens, hidden] f32
  MatmulInput x_;    // normed_, rounded to the router's type
  Buffer branch_;    // [max_tokens, hidden] f32, output of attention or FFN
  MatmulInput head_input_;  // [kMaxLogitRows, hidden]
  std::vector<absl::Status> token_status_;
};

}  // namespace expertmesh::router
