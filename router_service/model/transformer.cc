#include "router_service/model/transformer.h"

#include <cstring>

#include "services/linalg/vector_ops.h"

namespace expertmesh::router {

Transformer::Transformer(const ModelConfig& config, const DenseWeights& weights,
                         const TransformerOptions& options,
                         Dispatcher* dispatcher, WorkerPool* pool)
    : config_(config),
      weights_(weights),
      pool_(*pool),
      attention_(config, options.dtype, options.max_tokens,
                 options.max_context_tokens),
      dense_ffn_(options.dtype, options.max_tokens,
                 config.num_moe_layers() < config.num_layers
                     ? config.dense_intermediate_size
                     : 0),
      moe_(config, options.capacity, options.dtype, options.max_tokens,
           dispatcher),
      ticket_(dispatcher->options()),
      residual_(options.max_tokens * config.hidden_size * sizeof(float)),
      normed_(options.max_tokens * config.hidden_size * sizeof(float)),
      x_(options.dtype, options.max_tokens, config.hidden_size),
      branch_(options.max_tokens * config.hidden_size * sizeof(float)),
      head_input_(options.dtype, kMaxLogitRows, config.hidden_size) {
  token_status_.reserve(options.max_tokens);
}

void Transformer::Forward(const TokenBatch& batch, KvCache* cache,
                          RoutingObserver* observer) {
  const int64_t num_tokens = batch.num_tokens();
  float* branch = branch_.as<float>();
  token_status_.assign(num_tokens, absl::OkStatus());
  moe_.BeginStep();
  Embed(batch);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    const LayerWeights& weights = weights_.layers[layer];
    Norm(weights.attention.norm, num_tokens);
    attention_.Run(layer, weights.attention, batch, x_.view(), cache, branch,
                   pool_);
    AddToResidual(num_tokens);

    Norm(weights.ffn_norm, num_tokens);
    if (weights.dense) {
      dense_ffn_.Run(*weights.dense, x_.view(), num_tokens, branch, pool_);
    } else {
      moe_.Begin(layer, weights, normed_.as<float>(), x_.view(), batch.policy,
                 pool_, &ticket_);
      moe_.Finish(&ticket_, branch, &token_status_, pool_);
      if (observer) observer->OnLayer(layer, ticket_.routing, ticket_.plan);
    }
    AddToResidual(num_tokens);
  }
}

void Transformer::Logits(absl::Span<const int32_t> rows, float* logits) {
  const int64_t hidden = config_.hidden_size;
  const int64_t num_rows = static_cast<int64_t>(rows.size());
  ForRows(pool_, num_rows, [&](int64_t row) {
    float* normed = normed_.as<float>() + row * hidden;
    RmsNorm(residual_.as<float>() + rows[row] * hidden,
            weights_.final_norm.data(), static_cast<float>(config_.norm_eps),
            hidden, normed);
    head_input_.Store(row, normed);
  });
  Gemm(head_input_.view(), num_rows, weights_.lm_head, logits,
       config_.vocab_size, pool_);
}

void Transformer::Embed(const TokenBatch& batch) {
  const int64_t hidden = config_.hidden_size;
  const TensorView& table = weights_.embed_tokens;
  const size_t row_bytes = hidden * DTypeBytes(table.dtype);
  ForRows(pool_, batch.num_tokens(), [&](int64_t token) {
    const std::byte* from = table.data + batch.token_ids[token] * row_bytes;
    float* to = residual_.as<float>() + token * hidden;
    if (table.dtype == DType::kF32) {
      std::memcpy(to, from, row_bytes);
      return;
    }
    for (int64_t i = 0; i < hidden; ++i) {
      uint16_t bits;
      std::memcpy(&bits, from + i * sizeof(bits), sizeof(bits));
      to[i] = table.dtype == DType::kBF16 ? ToF32(BF16{bits}) : F16ToF32(bits);
    }
  });
}

void Transformer::Norm(const std::vector<float>& weight, int64_t num_tokens) {
  const int64_t hidden = config_.hidden_size;
  ForRows(pool_, num_tokens, [&](int64_t token) {
    float* normed = normed_.as<float>() + token * hidden;
    RmsNorm(residual_.as<float>() + token * hidden, weight.data(),
            static_cast<float>(config_.norm_eps), hidden, normed);
    x_.Store(token, normed);
  });
}

void Transformer::AddToResidual(int64_t num_tokens) {
  const int64_t hidden = config_.hidden_size;
  ForRows(pool_, num_tokens, [&](int64_t token) {
    Add(branch_.as<float>() + token * hidden, hidden,
        residual_.as<float>() + token * hidden);
  });
}

}  // namespace expertmesh::router
