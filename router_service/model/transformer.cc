#include "router_service/model/transformer.h"

#include <cstring>

#include "services/core/clock.h"
#include "services/linalg/vector_ops.h"

namespace expertmesh::router {
namespace {

// Of inputs that only quantized matrices take where there are such.
ActivationType InputType(const TransformerOptions& options,
                         const DenseWeights& weights) {
  return {options.dtype, !weights.quantized, weights.quantized};
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const DenseWeights& weights,
                         const TransformerOptions& options,
                         Dispatcher* dispatcher, WorkerPool* pool)
    : config_(config),
      weights_(weights),
      pool_(*pool),
      attention_(config, InputType(options, weights), options.max_tokens,
                 options.max_context_tokens),
      dense_ffn_(InputType(options, weights), options.max_tokens,
                 config.num_moe_layers() < config.num_layers
                     ? config.dense_intermediate_size
                     : 0),
      moe_(config, options.capacity, InputType(options, weights),
           options.max_tokens, dispatcher, &times_),
      micro_batch_policy_(options.micro_batches),
      residual_(options.max_tokens * config.hidden_size * sizeof(float)),
      normed_(options.max_tokens * config.hidden_size * sizeof(float)),
      // The gates take it plain.
      x_({options.dtype, /*plain=*/true, weights.quantized}, options.max_tokens,
         config.hidden_size),
      branch_(options.max_tokens * config.hidden_size * sizeof(float)),
      head_input_(InputType(options, weights), kMaxLogitRows,
                  config.hidden_size) {
  token_status_.reserve(options.max_tokens);
  const int most = options.micro_batches == 1 ? 1 : 2;
  for (int i = 0; i < most; ++i) {
    parts_.push_back(std::make_unique<MicroBatch>(dispatcher->options()));
  }
}

void Transformer::Forward(const TokenBatch& batch, KvCache* cache,
                          RoutingObserver* observer) {
  const int64_t num_tokens = batch.num_tokens();
  const absl::Duration start = Clock::Real()->Now();
  const int count = micro_batch_policy_.Choose(num_tokens);
  token_status_.assign(num_tokens, absl::OkStatus());
  moe_.BeginStep();
  Embed(batch);
  Split(batch, count);
  // A part's experts work from BeginFfn until the next layer's FinishFfn, while
  // the other part has its turn.
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    for (int i = 0; i < count; ++i) {
      MicroBatch* part = parts_[i].get();
      FinishFfn(layer - 1, part, observer);
      RunAttention(layer, *part, cache);
      BeginFfn(layer, part);
    }
  }
  for (int i = 0; i < count; ++i) {
    FinishFfn(config_.num_layers - 1, parts_[i].get(), observer);
  }
  micro_batch_policy_.Observe(num_tokens, count, Clock::Real()->Now() - start);
}

void Transformer::Split(const TokenBatch& batch, int count) {
  const int64_t num_tokens = batch.num_tokens();
  for (int i = 0; i < count; ++i) {
    const int64_t first = i * num_tokens / count;
    parts_[i]->first_token = first;
    SliceBatch(batch, first, (i + 1) * num_tokens / count, &parts_[i]->batch);
  }
}

void Transformer::RunAttention(int64_t layer, const MicroBatch& part,
                               KvCache* cache) {
  const AttentionWeights& weights = weights_.layers[layer].attention;
  Norm(weights.norm, part);
  attention_.Run(layer, weights, part.batch, x_.view(part.first_token), cache,
                 Rows(branch_, part), pool_);
  AddToResidual(part);
  times_.End(StepPhase::kAttention);
}

void Transformer::BeginFfn(int64_t layer, MicroBatch* part) {
  const LayerWeights& weights = weights_.layers[layer];
  Norm(weights.ffn_norm, *part);
  const ActivationView x = x_.view(part->first_token);
  if (weights.dense) {
    dense_ffn_.Run(*weights.dense, x, part->batch.num_tokens(),
                   Rows(branch_, *part), pool_);
    AddToResidual(*part);
    times_.End(StepPhase::kDense);
  } else {
    moe_.Begin(layer, weights, Rows(normed_, *part), x, part->batch.policy,
               part->batch.may_mix, part->batch.traced, pool_, &part->ticket);
  }
}

void Transformer::FinishFfn(int64_t layer, MicroBatch* part,
                            RoutingObserver* observer) {
  if (layer < 0 || weights_.layers[layer].dense) return;
  moe_.Finish(
      &part->ticket, Rows(branch_, *part),
      absl::MakeSpan(token_status_)
          .subspan(part->first_token, part->batch.num_tokens()),
      [&](uint32_t token) {
        return observer == nullptr ||
               observer->IsWanted(part->first_token + token);
      },
      pool_);
  AddToResidual(*part);
  if (observer) {
    observer->OnLayer(layer, part->first_token, part->ticket.routing,
                      part->ticket.plan);
    for (const uint32_t token : part->ticket.dispatch.crossed_tokens()) {
      observer->OnCrossed(part->first_token + token);
    }
  }
  times_.End(StepPhase::kCombine);
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
  times_.End(StepPhase::kHead);
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

void Transformer::Norm(const std::vector<float>& weight,
                       const MicroBatch& part) {
  const int64_t hidden = config_.hidden_size;
  ForRows(pool_, part.batch.num_tokens(), [&](int64_t token) {
    float* normed = Rows(normed_, part) + token * hidden;
    RmsNorm(Rows(residual_, part) + token * hidden, weight.data(),
            static_cast<float>(config_.norm_eps), hidden, normed);
    x_.Store(part.first_token + token, normed);
  });
}

void Transformer::AddToResidual(const MicroBatch& part) {
  const int64_t hidden = config_.hidden_size;
  ForRows(pool_, part.batch.num_tokens(), [&](int64_t token) {
    Add(Rows(branch_, part) + token * hidden, hidden,
        Rows(residual_, part) + token * hidden);
  });
}

}  // namespace expertmesh::router
