#pragma once

// The model as a router runs it: what of it is read, in which types it
// computes, and what that takes.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "expertmesh/v1/model.pb.h"
#include "router_service/model/dense_weights.h"
#include "router_service/model/kv_cache.h"
#include "router_service/router_config.h"
#include "services/checkpoint/checkpoint.h"
#include "services/core/dtype.h"
#include "services/core/worker_pool.h"
#include "services/text/tokenizer.h"

namespace expertmesh::router {

// Thread-safe once it is loaded.
class RouterModel {
 public:
  // Opens the checkpoint and chooses types; reads no weights. `config` is
  // checked. Errors: INVALID_ARGUMENT for a KV cache of no page, or one that
  // this machine has no memory for; those of Checkpoint::Open and
  // Tokenizer::Load.
  static absl::StatusOr<std::unique_ptr<RouterModel>> Open(
      const RouterConfig& config);

  // Makes the KV cache and the threads, loads the weights, and chooses an ISA
  // whose kernels agree with themselves. Takes long, and logs how far it is.
  // Errors: those of DenseWeights::Load.
  absl::Status Load();

  // For clients. Needs Load.
  v1::Model Describe() const;

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ModelConfig& model() const { return checkpoint_->config(); }
  // Null: only token ids are served.
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  DType activation_dtype() const { return activation_dtype_; }
  DType wire_dtype() const { return wire_dtype_; }
  int64_t combine_group_size() const { return combine_group_size_; }
  int64_t max_context_tokens() const { return max_context_tokens_; }

  // After Load.
  const DenseWeights& weights() const { return weights_; }
  KvCache* cache() { return cache_.get(); }
  WorkerPool* pool() { return pool_.get(); }

 private:
  explicit RouterModel(const RouterConfig& config) : config_(config) {}
  absl::Status ChooseTypes();
  absl::Status CheckKvCacheSize() const;
  absl::Status LoadWeights();
  // Each shape once.
  absl::Status CheckKernels() const;
  // What an answer's bits depend on, experts apart.
  std::string NumericsId() const;

  const RouterConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<WeightFormat> format_;  // nothing: weights as activations
  DType activation_dtype_ = DType::kF32;
  KvFormat kv_format_ = KvFormat::kF32;
  std::string router_dtype_;  // as announced
  std::string sum_order_;     // of the kernels; Load
  DType wire_dtype_ = DType::kF32;
  int64_t combine_group_size_ = 1;
  int64_t num_kv_pages_ = 0;
  int64_t max_context_tokens_ = 0;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<KvCache> cache_;
  DenseWeights weights_;
};

}  // namespace expertmesh::router
